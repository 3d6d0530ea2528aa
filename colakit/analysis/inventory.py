"""Every parameter of a configured model by its public name, and which optimizer gets it: a model that is not built."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from colakit.analysis.layers import LayerName, block_layers, head_layer
from colakit.config.schema import ModelConfig

Component = Literal[LayerName, "embedding", "norms", "gates"]
Role = Literal["matrix", "embedding", "head", "norm", "bias", "gate"]
Group = Literal["muon", "adamw_decayed", "adamw_plain"]

_DECAYED = frozenset({"matrix", "embedding", "head"})


@dataclass(frozen=True)
class Parameter:
    """One entry of a checkpoint."""

    name: str
    component: Component
    role: Role
    shape: tuple[int, ...]
    matrices: int
    """How many matrices an optimizer sees in it; 0 in a vector."""

    @property
    def size(self) -> int:
        """Entries."""
        return self.shape[0] * (self.shape[1] if len(self.shape) == 2 else 1)


def group_of(role: Role, *, muon: bool) -> Group:
    """Who updates a parameter of this role.

    Muon takes matrices; AdamW takes embeddings, heads, norms, biases and gates, and without Muon the matrices too.
    Weight decay acts on matrices, embeddings and heads.
    """
    if muon and role == "matrix":
        return "muon"
    return "adamw_decayed" if role in _DECAYED else "adamw_plain"


def parameters(model: ModelConfig) -> tuple[Parameter, ...]:
    """Every parameter once, a tied matrix as the embedding; their names are the keys of `LM.state_dict`."""
    d = model.d_model
    found = [Parameter("tok_embed.weight", "embedding", "embedding", (model.vocab_size, d), 1)]
    for depth in range(model.n_layers):
        found += _block(model, depth)
    found.append(Parameter("norm.weight", "norms", "norm", (d,), 0))
    if not model.tie_embeddings:
        head = head_layer(model)
        found += [
            Parameter(f"{head.path}.{w.name}", "head", "head" if w.matrices else "bias", w.shape, w.matrices)
            for w in head.weights
        ]
    return tuple(found)


def _block(model: ModelConfig, depth: int) -> Iterator[Parameter]:
    path = f"blocks.{depth}"
    for layer in block_layers(model):
        for w in layer.weights:
            role: Role = "matrix" if w.matrices else "bias"
            yield Parameter(f"{path}.{layer.path}.{w.name}", layer.name, role, w.shape, w.matrices)
    for norm, width in _norms(model, depth):
        yield Parameter(f"{path}.{norm}.weight", "norms", "norm", (width,), 0)
    if model.norm == "listing":
        yield Parameter(f"{path}.gated_residual.gate", "gates", "gate", (model.d_model,), 0)


def _norms(model: ModelConfig, depth: int) -> Iterator[tuple[str, int]]:
    """Path and width of a block's RMSNorms: of Q, K and V per head (eq. 3), and around the layers.

    HybridNorm has one around the layers where eq. 5 uses Norm(Y) twice: in every block after the first (eq. 6 and 7).
    """
    if model.effective_qkv_norm == "rms":
        for part in ("q", "k", "v"):
            yield f"attention.{part}_norm", model.head_dim
    if model.norm in ("pre", "post") or (model.norm == "hybrid" and depth == 0):
        yield "attention_norm", model.d_model
    yield "mlp_norm", model.d_model
    if model.norm == "listing":
        yield "post_mlp_norm", model.d_model
