"""The weights of every layer of a configured model: what `params` sums and `flops` multiplies by.

Shapes only, in closed form over a `ModelConfig`; the model itself is built from the same fields elsewhere.
"""

from dataclasses import dataclass
from typing import Literal

from colakit.config.schema import ModelConfig

LayerName = Literal["q", "k", "v", "o", "fan", "gate_up", "down", "head"]


@dataclass(frozen=True)
class Weight:
    """One published tensor of a layer."""

    name: str
    """As in a checkpoint, behind the layer's path: ``a``, ``b_np``, ``weight``, ``bias``."""
    shape: tuple[int, ...]
    """(rows, columns) of what multiplies a token, or (width,) of a bias."""
    matrices: int = 1
    """How many matrices an optimizer sees in it, one above the other; 0 in a bias."""

    @property
    def size(self) -> int:
        """Entries."""
        return self.shape[0] * (self.shape[1] if len(self.shape) == 2 else 1)


@dataclass(frozen=True)
class Layer:
    """One layer: every matrix of it multiplies every token once."""

    name: LayerName
    path: str
    """Of its weights in a checkpoint, within its block: ``attention.q_proj``."""
    weights: tuple[Weight, ...]

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """Shapes (rows, columns) of the matrices a token is multiplied by."""
        return tuple((w.shape[0], w.shape[1]) for w in self.weights if len(w.shape) == 2)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one token."""
        return sum(rows * columns for rows, columns in self.matrices)


def block_layers(model: ModelConfig) -> tuple[Layer, ...]:
    """The layers of one block; all blocks are alike. ``fan`` is the extra FAN layer of ATF, absent elsewhere."""
    d, kv, d_ff = model.d_model, model.kv_width, model.d_ff
    qkv = _cola_fan if model.fan == "qkv" else _projection
    return (
        *((_fan(model),) if model.fan == "input" else ()),
        qkv(model, "q", "attention.q_proj", d, d),
        qkv(model, "k", "attention.k_proj", d, kv),
        qkv(model, "v", "attention.v_proj", d, kv),
        _projection(model, "o", "attention.o_proj", d, d),
        _projection(model, "gate_up", "mlp.gate_up_proj", d, 2 * d_ff, matrices=2),
        _projection(model, "down", "mlp.down_proj", d_ff, d),
    )


def head_layer(model: ModelConfig) -> Layer:
    """The output projection; tied, its matrix is the embedding's."""
    if model.tie_embeddings:
        return Layer("head", "lm_head", (Weight("weight", (model.vocab_size, model.d_model)),))
    return _projection(model, "head", "lm_head", model.d_model, model.vocab_size)


def _projection(model: ModelConfig, name: LayerName, path: str, d_in: int, d_out: int, *, matrices: int = 1) -> Layer:
    """W·x without bias, `matrices` of them in W; or CoLA's B·σ(A·x): A has no bias, B has one (Algorithm 3)."""
    if model.linear == "dense":
        return Layer(name, path, (Weight("weight", (d_out, d_in), matrices),))
    return Layer(name, path, _low_rank("", d_in, model.rank_of(d_in), d_out))


def _cola_fan(model: ModelConfig, name: LayerName, path: str, d_in: int, d_out: int) -> Layer:
    """CoLA_FAN (Algorithm 1): a periodic branch of p features, used for cosine and sine, and one for the rest.

    Without periodic features it is plain CoLA, with one A.
    """
    periodic = int(d_out * model.fan_ratio)
    if periodic == 0:
        return _projection(model, name, path, d_in, d_out)
    rank = model.rank_of(d_in)
    branches = (_low_rank("_p", d_in, rank, periodic), _low_rank("_np", d_in, rank, d_out - 2 * periodic))
    return Layer(name, path, (*branches[0], *branches[1]))


def _low_rank(suffix: str, d_in: int, rank: int, d_out: int) -> tuple[Weight, ...]:
    return (
        Weight(f"a{suffix}", (rank, d_in)),
        Weight(f"b{suffix}", (d_out, rank)),
        Weight(f"bias{suffix}", (d_out,), 0),
    )


def _fan(model: ModelConfig) -> Layer:
    """The full-rank FAN layer before Q, K and V (§2.3.3): W_p without bias, W_n with one."""
    d = model.d_model
    periodic = int(d * model.fan_ratio)
    rest = d - 2 * periodic
    return Layer(
        "fan",
        "attention.features",
        (Weight("w_p", (periodic, d)), Weight("w_n", (rest, d)), Weight("bias", (rest,), 0)),
    )
