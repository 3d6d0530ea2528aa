"""Public names for stacked storage: what `state_dict` shows and `load_state_dict` takes.

Stored, Q, K and V are rows of one tensor ``attention.qkv.a``; published, they are ``attention.q_proj.a`` and so on. The
hooks sit on the root, since a child's load hook sees no key outside its own prefix.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from colakit.model.linear import Projections

StateDict = dict[str, Any]  # Any: torch's own type for a state dict's values


def publish(root: nn.Module, state: StateDict, prefix: str, _metadata: object) -> None:
    """State-dict hook: replace stored tensors by one entry (a view) per projection."""
    for path, public, module in _projections(root, prefix):
        stored = {name: state.pop(path + name) for name, _ in module.named_parameters()}
        for name, (parameter, rows) in module.public_slices().items():
            state[public + name] = stored[parameter][rows]


def restore(root: nn.Module, state: StateDict, prefix: str, *_: object) -> None:
    """Load hook: join the published entries again. An incomplete projection is left for torch to report."""
    for path, public, module in _projections(root, prefix):
        pieces: dict[str, list[Tensor | None]] = {}
        for name, (parameter, _rows) in module.public_slices().items():
            pieces.setdefault(parameter, []).append(state.get(public + name))
        for name in module.public_slices():
            state.pop(public + name, None)
        for parameter, tensors in pieces.items():
            present = [t for t in tensors if t is not None]
            if len(present) == len(tensors):
                state[path + parameter] = torch.cat(present) if len(present) > 1 else present[0]


def _projections(root: nn.Module, prefix: str) -> Iterator[tuple[str, str, Projections]]:
    """Each `Projections` under `root`: its stored prefix, its public prefix (its parent's), and itself."""
    for path, module in root.named_modules():
        if isinstance(module, Projections):
            parent = path.rpartition(".")[0]
            yield f"{prefix}{path}.", f"{prefix}{parent}." if parent else prefix, module
