"""The matrices of every layer of a configured model: what `params` sums and `flops` multiplies by.

Shapes only, in closed form over a `ModelConfig`; the model itself is built from the same fields elsewhere.
"""

from dataclasses import dataclass
from typing import Literal

from colakit.config.schema import ModelConfig

LayerName = Literal["q", "k", "v", "o", "fan", "gate_up", "down", "head"]


@dataclass(frozen=True)
class Layer:
    """One layer: the matrices (rows, columns) that a token is multiplied by, and the width of its biases."""

    name: LayerName
    matrices: tuple[tuple[int, int], ...]
    bias: int = 0

    @property
    def weights(self) -> int:
        """Entries of all its matrices: also the multiply-adds of one token."""
        return sum(rows * columns for rows, columns in self.matrices)


def block_layers(model: ModelConfig) -> tuple[Layer, ...]:
    """The layers of one block; all blocks are alike. ``fan`` is the extra FAN layer of ATF, absent elsewhere."""
    d, kv, d_ff = model.d_model, model.kv_width, model.d_ff
    qkv = _cola_fan if model.fan == "qkv" else _projection
    return (
        *((_fan(model),) if model.fan == "input" else ()),
        qkv(model, "q", d, d),
        qkv(model, "k", d, kv),
        qkv(model, "v", d, kv),
        _projection(model, "o", d, d),
        _projection(model, "gate_up", d, 2 * d_ff),
        _projection(model, "down", d_ff, d),
    )


def head_layer(model: ModelConfig) -> Layer:
    """The output projection; tied, it is the embedding matrix."""
    if model.tie_embeddings:
        return Layer("head", ((model.vocab_size, model.d_model),))
    return _projection(model, "head", model.d_model, model.vocab_size)


def _projection(model: ModelConfig, name: LayerName, d_in: int, d_out: int) -> Layer:
    """W·x without bias, or CoLA's B·σ(A·x): A has no bias, B has one (Algorithm 3)."""
    if model.linear == "dense":
        return Layer(name, ((d_out, d_in),))
    rank = model.rank_of(d_in)
    return Layer(name, ((rank, d_in), (d_out, rank)), bias=d_out)


def _cola_fan(model: ModelConfig, name: LayerName, d_in: int, d_out: int) -> Layer:
    """CoLA_FAN (Algorithm 1): a periodic branch of p features, used for cosine and sine, and one for the rest.

    Without periodic features it is plain CoLA, with one A.
    """
    periodic = int(d_out * model.fan_ratio)
    if periodic == 0:
        return _projection(model, name, d_in, d_out)
    rank, rest = model.rank_of(d_in), d_out - 2 * periodic
    return Layer(name, ((rank, d_in), (rank, d_in), (periodic, rank), (rest, rank)), bias=periodic + rest)


def _fan(model: ModelConfig) -> Layer:
    """The full-rank FAN layer before Q, K and V (§2.3.3): W_p without bias, W_n with one."""
    d = model.d_model
    periodic = int(d * model.fan_ratio)
    rest = d - 2 * periodic
    return Layer("fan", ((periodic, d), (rest, d)), bias=rest)
