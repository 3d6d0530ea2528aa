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


def restore(
    root: nn.Module,
    state: StateDict,
    prefix: str,
    _metadata: object,
    strict: bool,
    _missing: list[str],
    _unexpected: list[str],
    errors: list[str],
) -> None:
    """Load hook: join the published entries again; what is missing or of another shape goes to `errors` by its name."""
    for path, public, module in _projections(root, prefix):
        stored = dict(module.named_parameters())
        pieces: dict[str, list[Tensor]] = {name: [] for name in stored}
        for name, (parameter, rows) in module.public_slices().items():
            tensor, expected = state.pop(public + name, None), stored[parameter][rows].shape
            if tensor is None:
                errors.extend([f"Missing key in state_dict: {public}{name}"] if strict else [])
            elif tensor.shape != expected:
                errors.append(f"size mismatch for {public}{name}: {tuple(tensor.shape)}, not {tuple(expected)}")
            else:
                pieces[parameter].append(tensor)
        for parameter, tensors in pieces.items():
            joined = torch.cat(tensors) if len(tensors) > 1 else tensors[0] if tensors else stored[parameter]
            # An incomplete one keeps its own value: the error is already noted, under the name a user knows.
            complete = joined.shape == stored[parameter].shape
            state[path + parameter] = joined if complete else stored[parameter]


def public_rows(root: nn.Module) -> dict[str, tuple[str, slice]]:
    """Public name of each tensor of `root` → the stored parameter that it is in, and its rows there."""
    found = {name: (name, slice(None)) for name, _ in root.named_parameters()}
    for path, public, module in _projections(root, ""):
        for name, _ in module.named_parameters():
            del found[path + name]
        found |= {public + name: (path + stored, rows) for name, (stored, rows) in module.public_slices().items()}
    return found


def _projections(root: nn.Module, prefix: str) -> Iterator[tuple[str, str, Projections]]:
    """Each `Projections` under `root`: its stored prefix, its public prefix (its parent's), and itself."""
    for path, module in root.named_modules():
        if isinstance(module, Projections):
            parent = path.rpartition(".")[0]
            yield f"{prefix}{path}.", f"{prefix}{parent}." if parent else prefix, module
