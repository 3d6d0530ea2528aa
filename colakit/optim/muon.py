"""Muon (eq. 10–15): momentum, orthogonalised per matrix, as the update of every weight matrix.

A parameter may hold several matrices one above the other (`matrix_rows`): each is orthogonalised by itself, and all
matrices of one shape together, in one batch.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from colakit.optim.newton_schulz import Coefficients, compute_dtype, flops, orthogonalize, workspace_bytes

UpdateScaling = Literal["match_rms_adamw", "original"]


_CPU_BATCH = 2**22
"""Entries iterated at once on a CPU, 16 MiB: more leaves the caches and makes the allocator fetch new pages each step,
which cost a quarter of the step's time. A GPU takes all matrices of a shape."""


class _Run(NamedTuple):
    """Matrices of one shape that lie one above the other in a parameter, as they lie."""

    parameter: Tensor
    rows: slice
    shape: tuple[int, int, int]
    """[N, M, K]."""

    @property
    def matrix(self) -> tuple[int, int]:
        """(M, K)."""
        return self.shape[1:]

    def of(self, tensor: Tensor) -> Tensor:
        """The view of them in the parameter, its gradient or its momentum."""
        return tensor[self.rows].view(self.shape)


class Muon(Optimizer):
    """W ← W·(1 − η·λ) − η·s·O with O = NewtonSchulz(G + μ·M_t), M_t = μ·M_{t−1} + G; without Nesterov, of M_t.

    ``momentum_buffer`` is (1 − μ)·M_t, as `torch.optim.Muon` keeps it: Newton–Schulz ignores the factor.
    `update_scaling` says what s is: ``match_rms_adamw``, 0.2·√max(M, K), gives an update the root mean square of an
    AdamW step (arXiv 2502.16982), so that one learning rate serves both, as the equal rates of Table 2 imply;
    ``original`` is √max(1, M/K) (Jordan et al. 2024).

    Each group needs ``matrix_rows``: for each of its parameters [ΣM, K], the rows M of the matrices stacked in it.
    Raises ValueError where the rows do not add up. Besides the state a step holds the `workspace_bytes` of one shape.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
        ns_steps: int,
        ns_coefficients: Coefficients,
        update_scaling: UpdateScaling,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "ns_steps": ns_steps,
            "ns_coefficients": ns_coefficients,
            "update_scaling": update_scaling,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take one more group. Raises ValueError where ``matrix_rows`` are missing or do not add up."""
        super().add_param_group(param_group)
        self._check(self.param_groups[-1])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the momentum, and the options it was kept under. Raises ValueError where it has other matrices."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            self._check(group)

    def _check(self, group: dict[str, Any]) -> None:
        check_rows(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # as torch's
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def flops_per_step(self) -> int:
        """Floating point operations of a step's matrix products, all of them Newton–Schulz."""
        return sum(
            _matrices(batch) * flops(batch[0].matrix, compute_dtype(batch[0].parameter), *_iteration(group))
            for group in self.param_groups
            for batch in batches(group, _trained(group))
        )

    def workspace_bytes(self) -> int:
        """What a step holds at most besides the state: the matrices that are iterated together, and what that needs."""
        most = 0
        for group in self.param_groups:
            for batch in batches(group, _trained(group)):
                p, matrix = batch[0].parameter, batch[0].matrix
                each = workspace_bytes(matrix, p.dtype, compute_dtype(p), *_iteration(group))
                most = max(most, _matrices(batch) * each)
        return most

    def _step_group(self, group: dict[str, Any]) -> None:
        for batch in batches(group, [p for p in group["params"] if p.grad is not None]):
            self._update(batch, group)

    def _momentum(self, p: Tensor) -> Tensor:
        """Its ``momentum_buffer``, zeros at first."""
        if not self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momentum: Tensor = self.state[p]["momentum_buffer"]
        return momentum

    def _update(self, batch: list[_Run], group: dict[str, Any]) -> None:
        weights = [run.of(run.parameter) for run in batch]
        gradients = [run.of(run.parameter.grad) for run in batch if run.parameter.grad is not None]
        momenta = [run.of(self._momentum(run.parameter)) for run in batch]
        torch._foreach_lerp_(momenta, gradients, 1.0 - group["momentum"])
        counts = [run.shape[0] for run in batch]
        stack = weights[0].new_empty(sum(counts), *batch[0].matrix)
        parts = torch.split(stack, counts)
        if group["nesterov"]:
            torch._foreach_copy_(parts, gradients)
            torch._foreach_lerp_(parts, momenta, group["momentum"])
        else:
            torch._foreach_copy_(parts, momenta)
        update = self._orthogonalize(stack, *_iteration(group))
        torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
        scale = -group["lr"] * update_scale(batch[0].matrix, group["update_scaling"])
        torch._foreach_add_(weights, torch.split(update, counts), alpha=scale)

    def _orthogonalize(self, stack: Tensor, coefficients: Coefficients, steps: int) -> Tensor:
        """[N, M, K] → [N, M, K], `stack` overwritten. What a comparison replaces."""
        return orthogonalize(stack, coefficients, steps)


def update_scale(shape: Sequence[int], scaling: UpdateScaling) -> float:
    """s of the update of a matrix of shape (M, K)."""
    rows, columns = shape
    return 0.2 * math.sqrt(max(rows, columns)) if scaling == "match_rms_adamw" else math.sqrt(max(1.0, rows / columns))


def check_rows(group: dict[str, Any], here: Callable[[int], int] = lambda rows: rows) -> None:
    """Raise ValueError where a group's ``matrix_rows`` do not fit; of so many rows of a parameter, `here` are here."""
    if len(group.get("matrix_rows", ())) != len(group["params"]):
        raise ValueError("each parameter needs its matrix_rows")
    for p, rows in zip(group["params"], group["matrix_rows"], strict=True):
        if p.ndim != 2 or here(sum(rows)) != p.shape[0] or min(rows) < 1:
            raise ValueError(f"a parameter of shape {tuple(p.shape)} does not hold matrices of rows {rows}")


def _trained(group: dict[str, Any]) -> list[Tensor]:
    return [p for p in group["params"] if p.requires_grad]


def _iteration(group: dict[str, Any]) -> tuple[Coefficients, int]:
    return group["ns_coefficients"], group["ns_steps"]


def _matrices(batch: list[_Run]) -> int:
    return sum(run.shape[0] for run in batch)


def batches(group: dict[str, Any], wanted: Iterable[Tensor]) -> Iterator[list[_Run]]:
    """What is iterated together of the `wanted` parameters: matrices of one shape, on a CPU as many as suit it."""
    chosen = set(wanted)
    by_shape: dict[object, list[_Run]] = defaultdict(list)
    for p, rows in zip(group["params"], group["matrix_rows"], strict=True):
        for run in _runs(p, rows) if p in chosen else ():
            by_shape[run.matrix, p.dtype, p.device].append(run)
    for runs in by_shape.values():
        if runs[0].parameter.device.type != "cpu":
            yield runs
            continue
        batch: list[_Run] = []
        for run in runs:
            if batch and sum(math.prod(r.shape) for r in (*batch, run)) > _CPU_BATCH:
                yield batch
                batch = []
            batch.append(run)
        yield batch


def _runs(p: Tensor, rows: Sequence[int]) -> Iterator[_Run]:
    start = 0
    for m, equal in itertools.groupby(rows):
        n = len(list(equal))
        yield _Run(p, slice(start, start + n * m), (n, m, p.shape[1]))
        start += n * m
