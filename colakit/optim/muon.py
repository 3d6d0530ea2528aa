"""Muon (eq. 10–15): momentum, orthogonalised per matrix, as the update of every weight matrix.

A parameter may hold several matrices one above the other (`matrix_rows`): each is orthogonalised by itself, and all
matrices of one shape together, in one batch.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from colakit.optim.newton_schulz import Coefficients, compute_dtype, flops, orthogonalize, workspace_bytes

UpdateScaling = Literal["match_rms_adamw", "original"]


class _Run(NamedTuple):
    """Matrices of one shape that lie one above the other in a parameter: views [N, M, K], no copies."""

    weights: Tensor
    gradient: Tensor
    momentum: Tensor


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
        for group in self.param_groups:
            for p, rows in zip(group["params"], group["matrix_rows"], strict=True):
                if p.ndim != 2 or sum(rows) != p.shape[0]:
                    raise ValueError(f"a parameter of shape {tuple(p.shape)} does not hold matrices of rows {rows}")

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
            n * flops(shape, compute_dtype(p), group["ns_coefficients"], group["ns_steps"])
            for group in self.param_groups
            for shape, (n, p) in _matrices(group).items()
        )

    def workspace_bytes(self) -> int:
        """What a step holds at most besides the state: all matrices of one shape, in float32 or what they are in."""
        return max(
            n * workspace_bytes(shape, p.dtype, compute_dtype(p), group["ns_coefficients"], group["ns_steps"])
            for group in self.param_groups
            for shape, (n, p) in _matrices(group).items()
        )

    def _step_group(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[_Run]] = defaultdict(list)
        for p, rows in zip(group["params"], group["matrix_rows"], strict=True):
            if p.grad is not None:
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                for run in _runs(p, p.grad, state["momentum_buffer"], rows):
                    by_shape[run.weights.shape[1:]].append(run)
        for shape, runs in by_shape.items():
            self._update(shape, runs, group)

    def _update(self, shape: torch.Size, runs: list[_Run], group: dict[str, Any]) -> None:
        weights, gradients, momenta = map(list, zip(*runs, strict=True))
        torch._foreach_lerp_(momenta, gradients, 1.0 - group["momentum"])
        counts = [w.shape[0] for w in weights]
        stack = weights[0].new_empty(sum(counts), *shape)
        parts = torch.split(stack, counts)
        if group["nesterov"]:
            torch._foreach_copy_(parts, gradients)
            torch._foreach_lerp_(parts, momenta, group["momentum"])
        else:
            torch._foreach_copy_(parts, momenta)
        update = self._orthogonalize(stack, group["ns_coefficients"], group["ns_steps"])
        torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
        scale = -group["lr"] * update_scale(shape, group["update_scaling"])
        torch._foreach_add_(weights, torch.split(update, counts), alpha=scale)

    def _orthogonalize(self, stack: Tensor, coefficients: Coefficients, steps: int) -> Tensor:
        """[N, M, K] → [N, M, K], `stack` overwritten. What a comparison replaces."""
        return orthogonalize(stack, coefficients, steps)


def update_scale(shape: Sequence[int], scaling: UpdateScaling) -> float:
    """s of the update of a matrix of shape (M, K)."""
    rows, columns = shape
    return 0.2 * math.sqrt(max(rows, columns)) if scaling == "match_rms_adamw" else math.sqrt(max(1.0, rows / columns))


def _matrices(group: dict[str, Any]) -> dict[tuple[int, int], tuple[int, Tensor]]:
    """Shape → how many matrices of it the group holds, and a parameter that holds one."""
    found: dict[tuple[int, int], tuple[int, Tensor]] = {}
    for p, rows in zip(group["params"], group["matrix_rows"], strict=True):
        for m in rows:
            n, _ = found.get((m, p.shape[1]), (0, p))
            found[m, p.shape[1]] = n + 1, p
    return found


def _runs(p: Tensor, gradient: Tensor, momentum: Tensor, rows: Sequence[int]) -> Iterator[_Run]:
    start = 0
    for m, equal in itertools.groupby(rows):
        n = len(list(equal))
        own = slice(start, start + n * m)
        yield _Run(*(t[own].view(n, m, -1) for t in (p, gradient, momentum)))
        start = own.stop
