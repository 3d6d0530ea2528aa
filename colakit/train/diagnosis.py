"""Where a number that is not finite arose: a batch is run once more, each module's output and gradient looked at."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from colakit.data.loader import Batch
from colakit.parallel.shards import here
from colakit.train.step import TrainStep


def first_bad_weight(step: TrainStep) -> str | None:
    """The first weight that is not finite, in whatever process; every one calls this."""
    parameters = dict(step.model.named_parameters())
    is_finite = torch.stack([torch.isfinite(here(p.detach())).all() for p in parameters.values()]).tolist()
    own = is_finite.index(False) if not all(is_finite) else None
    found = [number for number in step.world.gather(own) if number is not None]
    return list(parameters)[min(found)] if found else None


def first_bad_layer(step: TrainStep, micro_batches: Sequence[Batch]) -> str | None:
    """The first place, in the order of computation, of a number that is not finite, in words; the first process's.

    None where all is finite this time. Runs forward and backward pass, and leaves no gradient behind. What the passes
    draw is drawn from torch's generator: to see the same dropout, put it back to where it was before the step. Compiled
    blocks drew theirs otherwise.
    """
    found = _first_told(
        step, next((f"the weight {n}" for n, p in step.model.named_parameters() if not _is_finite(p)), None)
    )
    # Where something passes through the model comes before what it does to gradients: FSDP2 makes them everybody's.
    found = found or _first_told(step, _on_the_way(step, micro_batches)) or _first_told(step, _bad_gradient(step))
    step.optimizer.zero_grad()
    return found


def _first_told(step: TrainStep, found: str | None) -> str | None:
    """What the first process has found that has found anything."""
    return next((place for place in step.world.gather(found) if place is not None), None)


def _on_the_way(step: TrainStep, micro_batches: Sequence[Batch]) -> str | None:
    """What is found in this process's part; all make the same passes, in which FSDP2's have to take part."""
    found: list[str] = []
    with ExitStack() as hooks, step.model.eagerly():  # compiled blocks have no modules to look at
        for name, module in step.model.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(_watch(name, found)).remove)
        for micro_batch in micro_batches:
            nll = step.accumulate([micro_batch], int(micro_batch.tokens.numel()), shares=False)[0]
            if not found and not bool(torch.isfinite(nll)):
                found.append("the loss")
    return found[0] if found else None


def _bad_gradient(step: TrainStep) -> str | None:
    parameters = list(step.model.named_parameters())
    bad = next((f"the gradient of {name}" for name, p in parameters if not _is_finite(p.grad)), None)
    norms = {name: float(here(p.grad).norm()) for name, p in parameters if p.grad is not None}
    if bad is None and not math.isfinite(math.hypot(*norms.values())):
        return f"the norm of finite gradients, the largest that of {max(norms, key=norms.__getitem__)}"
    return bad


def _watch(name: str, found: list[str]) -> Any:  # Any: torch's hooks
    def hook(_module: nn.Module, _inputs: object, output: object) -> None:
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, Tensor):
                if not found and not _is_finite(tensor):
                    found.append(f"the output of {name}")
                if tensor.requires_grad:
                    tensor.register_hook(look)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def look(gradient: Tensor) -> None:
        if not found and not _is_finite(gradient):
            found.append(f"the gradient of the output of {name}")

    return hook


def _is_finite(tensor: Tensor | None) -> bool:
    return tensor is None or not tensor.is_floating_point() or bool(torch.isfinite(here(tensor.detach())).all())
