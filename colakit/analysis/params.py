"""How many parameters a configured model has, by component, in closed form and without building it."""

from dataclasses import dataclass
from typing import Literal

from colakit.analysis.layers import Layer, LayerName, block_layers, head_layer
from colakit.config.schema import ModelConfig

Component = Literal[LayerName, "embedding", "norms", "gates"]

COMPONENTS: tuple[Component, ...] = (
    "embedding",
    "q",
    "k",
    "v",
    "o",
    "fan",
    "gate_up",
    "down",
    "norms",
    "gates",
    "head",
)


@dataclass(frozen=True)
class ComponentCount:
    """Parameters of one component, over all blocks."""

    component: Component
    parameters: int


def count_params(model: ModelConfig) -> tuple[ComponentCount, ...]:
    """Parameters of every component, in the order of `COMPONENTS`; 0 where a model has none of a kind.

    ``fan`` is the extra full-rank layer of ATF alone: CoLA_FAN's matrices are those of q, k and v. A tied head has none
    of its own.
    """
    counts: dict[Component, int] = {layer.name: model.n_layers * _size(layer) for layer in block_layers(model)}
    counts["embedding"] = model.vocab_size * model.d_model
    counts["norms"] = _norms(model)
    counts["gates"] = model.n_layers * model.d_model if model.norm == "listing" else 0
    counts["head"] = 0 if model.tie_embeddings else _size(head_layer(model))
    return tuple(ComponentCount(component, counts.get(component, 0)) for component in COMPONENTS)


def total_params(model: ModelConfig) -> int:
    """All parameters, a tied matrix counted once."""
    return sum(count.parameters for count in count_params(model))


def non_embedding_params(model: ModelConfig) -> int:
    """All parameters but the embedding matrix; an output projection of its own stays in."""
    return total_params(model) - model.vocab_size * model.d_model


def _size(layer: Layer) -> int:
    return layer.weights + layer.bias


def _norms(model: ModelConfig) -> int:
    """RMSNorm weights: around the layers, of Q, K and V per head (eq. 3), and the final one.

    Two per block, but HybridNorm has one where eq. 5 uses Norm(Y) twice: in every block after the first (eq. 6 and 7).
    """
    around = model.n_layers + 1 if model.norm == "hybrid" else 2 * model.n_layers
    qkv = 3 * model.head_dim * model.n_layers if model.effective_qkv_norm == "rms" else 0
    return (around + 1) * model.d_model + qkv
