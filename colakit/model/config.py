"""The sizes and choices a model is built from: plain values, so that this package needs torch and nothing else.

Field for field the resolved `colakit.config.schema.ModelConfig`, which holds the defaults, the rules and the sources.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LMConfig:
    """A resolved model configuration: every value decided."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    vocab_size: int
    seq_len: int
    rope_theta: float
    linear: Literal["dense", "cola"]
    rank: int | None
    fan: Literal["none", "qkv", "input"]
    fan_ratio: float
    norm: Literal["pre", "post", "hybrid", "listing"]
    qkv_norm: Literal["rms", "l2", "none"]
    norm_eps: float
    fan_dropout: float
    fan_dropout_growth: float
    post_attention_dropout: float
    final_dropout: float
    attention_dropout: float
    attention: Literal["flash", "sdpa", "reference"]
    tie_embeddings: bool
    remat: Literal["none", "cola_m"]

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads

    def rank_of(self, d_in: int) -> int:
        """Rank of a CoLA layer that reads `d_in` features: d_in // 4 unless set (§2.2)."""
        return self.rank if self.rank is not None else max(1, d_in // 4)

    def fan_dropout_at(self, depth: int) -> float:
        """Dropout inside CoLA_FAN at block `depth`, counted from 0: it grows linearly with depth (§5.9)."""
        return self.fan_dropout * (1.0 + self.fan_dropout_growth * depth)
