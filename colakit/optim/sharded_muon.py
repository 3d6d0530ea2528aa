"""Muon where each process has some rows of every parameter, as FSDP2 leaves them.

Nothing is orthogonalised as a shard: each matrix goes once to the one process it falls to, whole, and what comes of it
goes back to where its rows lie. Everything else is done element by element, where it lies.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from colakit.analysis.sharding import balanced, chunk
from colakit.optim.muon import Muon, batches, check_rows, update_scale
from colakit.optim.newton_schulz import compute_dtype, flops
from colakit.parallel.world import World


@dataclass(frozen=True)
class _Matrix:
    """A matrix [M, K] of parameter `index`."""

    index: int
    shape: tuple[int, int]
    rows: tuple[slice, ...]
    """By rank, of what that process has of the parameter: the rows that are this matrix's."""

    def entries(self, rank: int) -> int:
        """How many numbers of it are there."""
        start, stop, _ = self.rows[rank].indices(self.rows[rank].stop)
        return (stop - start) * self.shape[1]


class ShardedMuon(Muon):
    """As `Muon`; a group's parameters are the rows that lie here, none of some, its ``matrix_rows`` of the wholes."""

    def __init__(self, params: list[dict[str, Any]], *, world: World, **options: Any) -> None:
        self._world = world
        self._plans: dict[int, list[list[_Matrix]]] = {}
        super().__init__(params, **options)

    def _check(self, group: dict[str, Any]) -> None:
        check_rows(group, lambda rows: len(range(*chunk(rows, self._world.size, self._world.rank))))

    def _step_group(self, group: dict[str, Any]) -> None:
        if any(p.grad is None for p in group["params"]):
            raise ValueError("each process needs every gradient: what they do, they do together")
        owned = self._owned(group)
        mine, parts = owned[self._world.rank], [m for own in owned for m in own]
        to_owners = [sum(m.entries(self._world.rank) for m in own) for own in owned]
        from_all = [sum(m.entries(rank) for m in mine) for rank in range(self._world.size)]
        directions = self._directions(group)
        sent = torch.cat([self._rows_of(m, directions).flatten() for m in parts])
        wholes = self._joined(mine, torch.split(self._exchange(sent, to_owners, from_all), from_all))
        self._orthogonalize_all_(wholes, group)
        answer = [w for rank in range(self._world.size) for w in self._parts_for(rank, mine, wholes)]
        # In the type that the iteration ended in: nothing is lost.
        back = torch.cat([sent[:0], *answer]).to(compute_dtype(sent))
        self._apply(group, parts, self._exchange(back, from_all, to_owners).to(sent.dtype))

    def flops_per_step(self) -> int:
        """Of the matrices that fall to this process."""
        return sum(
            flops(m.shape, compute_dtype(group["params"][0]), group["ns_coefficients"], group["ns_steps"])
            for group in self.param_groups
            for m in self._owned(group)[self._world.rank]
        )

    def _owned(self, group: dict[str, Any]) -> list[list[_Matrix]]:
        """The matrices that fall to each process, so that all have as much Newton–Schulz as can be."""
        number = next(i for i, each in enumerate(self.param_groups) if each is group)
        if number not in self._plans:  # which takes most of a second for a thousand processes
            self._plans[number] = self._divided(group)
        return self._plans[number]

    def _divided(self, group: dict[str, Any]) -> list[list[_Matrix]]:
        matrices = list(_matrices(group, self._world.size))
        dtype = compute_dtype(group["params"][0])
        costs = [flops(m.shape, dtype, group["ns_coefficients"], group["ns_steps"]) for m in matrices]
        owners = balanced(costs, self._world.size)
        return [[m for m, owner in zip(matrices, owners, strict=True) if owner == r] for r in range(self._world.size)]

    def _directions(self, group: dict[str, Any]) -> list[Tensor]:
        """Momentum, and what is to be orthogonalised, of the rows that are here."""
        gradients, momenta = [p.grad for p in group["params"]], [self._momentum(p) for p in group["params"]]
        torch._foreach_lerp_(momenta, gradients, 1.0 - group["momentum"])
        return list(torch._foreach_lerp(gradients, momenta, group["momentum"])) if group["nesterov"] else momenta

    def _joined(self, mine: Sequence[_Matrix], arrived: Sequence[Tensor]) -> list[Tensor]:
        """The whole of each matrix of `mine`: of every process in turn, what it has of one after another."""
        pieces = [torch.split(a, [m.entries(rank) for m in mine]) for rank, a in enumerate(arrived)]
        return [torch.cat([p[i] for p in pieces]).view(m.shape) for i, m in enumerate(mine)]

    def _orthogonalize_all_(self, wholes: list[Tensor], group: dict[str, Any]) -> None:
        as_group = {"params": wholes, "matrix_rows": [(len(w),) for w in wholes]}
        for batch in batches(as_group, wholes):
            update = self._orthogonalize(
                torch.stack([run.parameter for run in batch]), group["ns_coefficients"], group["ns_steps"]
            )
            for run, orthogonal in zip(batch, update, strict=True):
                run.parameter.copy_(orthogonal)

    def _parts_for(self, rank: int, mine: Sequence[_Matrix], wholes: Sequence[Tensor]) -> Iterator[Tensor]:
        for m, whole in zip(mine, wholes, strict=True):
            yield torch.split(whole.flatten(), [m.entries(r) for r in range(self._world.size)])[rank]

    def _apply(self, group: dict[str, Any], parts: Sequence[_Matrix], updates: Tensor) -> None:
        torch._foreach_mul_(group["params"], 1.0 - group["lr"] * group["weight_decay"])
        by_scale: dict[float, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for m, update in zip(parts, torch.split(updates, [m.entries(self._world.rank) for m in parts]), strict=True):
            weights, changes = by_scale[update_scale(m.shape, group["update_scaling"])]
            weights.append(self._rows_of(m, group["params"]))
            changes.append(update.view_as(weights[-1]))
        for scale, (weights, changes) in by_scale.items():
            torch._foreach_add_(weights, changes, alpha=-group["lr"] * scale)

    def _rows_of(self, m: _Matrix, tensors: Sequence[Tensor]) -> Tensor:
        """What is here of `m` in `tensors`, one for each parameter; a view."""
        return tensors[m.index][m.rows[self._world.rank]]

    def _exchange(self, sent: Tensor, to_each: list[int], from_each: list[int]) -> Tensor:
        received = sent.new_empty(sum(from_each))
        dist.all_to_all_single(received, sent, from_each, to_each, group=self._world.group)
        return received


def _matrices(group: dict[str, Any], size: int) -> Iterator[_Matrix]:
    for index, (p, rows) in enumerate(zip(group["params"], group["matrix_rows"], strict=True)):
        bounds = [chunk(sum(rows), size, rank) for rank in range(size)]
        start = 0
        for m in rows:
            inside = [(min(max(start, low), high), min(max(start + m, low), high), low) for low, high in bounds]
            yield _Matrix(index, (m, p.shape[1]), tuple(slice(a - low, b - low) for a, b, low in inside))
            start += m
