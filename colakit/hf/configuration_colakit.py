"""`ColakitConfig`: the model's own configuration as `transformers` keeps one."""

from dataclasses import asdict, fields
from typing import Any

from transformers import PretrainedConfig

from colakit.model.config import LMConfig

_OWN = tuple(field.name for field in fields(LMConfig))


class ColakitConfig(PretrainedConfig):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Every field of `LMConfig` under its own name, and under the ones that `transformers` uses elsewhere."""

    model_type = "colakit"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  (transformers' own way of writing it)
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "intermediate_size": "d_ff",
        "max_position_embeddings": "seq_len",
    }

    def __init__(self, **values: Any) -> None:  # Any: what transformers adds of its own
        """From the fields of `LMConfig`, those that are not given being those of a small model, and others' words."""
        own = _SMALL | {name: values.pop(name) for name in _OWN if name in values}
        for name, value in own.items():
            setattr(self, name, value)
        self.use_cache = values.pop("use_cache", True)
        values["tie_word_embeddings"] = own["tie_embeddings"]
        super().__init__(**values)

    def lm_config(self) -> LMConfig:
        """What the model is built from. Raises ValueError for a value that no model has."""
        config = LMConfig(**{name: getattr(self, name) for name in _OWN})
        for name, known in _CHOICES.items():
            if getattr(config, name) not in known:
                raise ValueError(f"{name} is {getattr(config, name)!r}, which is none of {', '.join(map(str, known))}")
        return config


_SMALL = asdict(
    LMConfig(
        d_model=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        d_ff=160,
        vocab_size=1000,
        seq_len=128,
        rope_theta=10_000.0,
        linear="cola",
        rank=None,
        fan="none",
        fan_ratio=0.0,
        norm="hybrid",
        qkv_norm="rms",
        norm_eps=1e-8,
        fan_dropout=0.0,
        fan_dropout_growth=0.0,
        post_attention_dropout=0.0,
        final_dropout=0.0,
        attention_dropout=0.0,
        attention="sdpa",
        tie_embeddings=True,
        remat="none",
    )
)
"""`transformers` makes a configuration without a word, to see which values differ from it."""

_CHOICES = {
    "linear": ("dense", "cola"),
    "fan": ("none", "qkv", "input"),
    "norm": ("pre", "post", "hybrid", "listing"),
    "qkv_norm": ("rms", "l2", "none"),
    "attention": ("flash", "sdpa", "reference"),
    "remat": ("none", "cola_m"),
}
