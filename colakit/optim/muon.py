"""Muon (eq. 10–15): momentum, orthogonalised per matrix, as the update of every weight matrix.

A parameter may hold several matrices one above the other (`matrix_rows`): each is orthogonalised by itself, and all
matrices of one shape together, in one batch.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from colakit.optim.newton_schulz import compute_dtype, orthogonalize


class Muon(Optimizer):
    """W ← W·(1 − η·λ) − η·0.2·√max(M, K)·O with O = NewtonSchulz(G + μ·M_t), M_t = μ·M_{t−1} + G (Nesterov).

    The factor 0.2·√max(M, K) gives an update the root mean square of an AdamW step (arXiv 2502.16982), so that one
    learning rate serves both, as the equal rates of Table 2 imply. Each group needs ``matrix_rows``: for each of its
    parameters [ΣM, K], the rows M of the matrices stacked in it. Raises ValueError where the rows do not add up.
    """

    def __init__(
        self, params: list[dict[str, Any]], *, lr: float, momentum: float, weight_decay: float, ns_steps: int
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "ns_steps": ns_steps})
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

    def _step_group(self, group: dict[str, Any]) -> None:
        weights: dict[torch.Size, list[Tensor]] = defaultdict(list)
        directions: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for p, rows in zip(group["params"], group["matrix_rows"], strict=True):
            if p.grad is None:
                continue
            direction = self._momentum_direction(p, group["momentum"])
            for w, d in zip(torch.split(p, rows), torch.split(direction, rows), strict=True):
                weights[w.shape].append(w)
                directions[w.shape].append(d)
        for shape, stack in directions.items():
            x = torch.stack(stack)
            update = orthogonalize(x, group["ns_steps"], compute_dtype(x.device))
            scale = -group["lr"] * 0.2 * math.sqrt(max(shape))
            torch._foreach_mul_(weights[shape], 1.0 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights[shape], list(update.unbind()), alpha=scale)

    def _momentum_direction(self, p: Tensor, momentum: float) -> Tensor:
        """Advance the momentum of `p` by its gradient; return the Nesterov direction G + μ·M."""
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer: Tensor = state["momentum_buffer"]
        assert p.grad is not None
        buffer.mul_(momentum).add_(p.grad)
        return p.grad.add(buffer, alpha=momentum)
