"""How the update is divided among processes: what of the parameters each one updates, and how all come to know.

`Whole`: everyone updates everything, as one process alone does. `ByOwner` (ZeRO-1): each updates some parameters and
sends them to all. `ByRows` (FSDP2): each updates the rows that it has.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from colakit.analysis.sharding import balanced, chunk, poured
from colakit.config.schema import OptimConfig
from colakit.model.linear import ParamRole
from colakit.optim.groups import Routing
from colakit.optim.muon import Muon
from colakit.optim.newton_schulz import compute_dtype, flops
from colakit.optim.sharded_muon import ShardedMuon
from colakit.parallel.shards import here, is_sharded
from colakit.parallel.world import ALONE, World

_ADAMW_MOMENTS = 2
"""Entries of AdamW's state for each of a parameter; Muon has one."""

Parameters = Mapping[str, nn.Parameter]


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows of a parameter of the model, from `start` on, as a parameter that shares its memory."""

    name: str
    parameter: nn.Parameter
    start: int
    tensor: nn.Parameter

    def attach(self) -> None:
        """Give it the parameter's memory and gradient, as they are now."""
        if self.tensor is self.parameter:
            return
        gradient = self.parameter.grad
        # FSDP2 may have moved the parameter, as in its first forward pass.
        self.tensor.data = self.of(self.parameter.detach())
        self.tensor.grad = None if gradient is None else self.of(gradient)

    def of(self, tensor: Tensor) -> Tensor:
        """Its rows of the parameter, or of what is shaped like it; a view."""
        if is_sharded(tensor):
            return here(tensor)
        return tensor[self.start : self.start + self.tensor.shape[0]]


class Division(ABC):
    """What this process updates: the pieces for Muon, and those for AdamW."""

    muon: Sequence[Piece]
    adamw: Sequence[Piece]
    world: World = ALONE
    """Those among whom the gradient is divided; alone where everyone has all of it."""

    def make_muon(self, group: dict[str, Any], **options: Any) -> Muon:
        """Muon for its pieces; arguments as for `Muon`."""
        return Muon([group], **options)

    @abstractmethod
    def publish(self) -> None:
        """Behind an update: have everyone know all of the weights that it needs."""


class Whole(Division):
    """All of each parameter."""

    def __init__(self, parameters: Parameters, routing: Routing) -> None:
        adamw = (*routing.adamw_decayed, *routing.adamw_plain)
        self.muon, self.adamw = (
            [Piece(name, parameters[name], 0, parameters[name]) for name in names] for names in (routing.muon, adamw)
        )

    def publish(self) -> None:
        """Everyone has computed the same."""


class ByOwner(Division):
    """ZeRO-1: Muon's are whole parameters, so that no matrix is cut, with as much Newton–Schulz for each as can be.

    AdamW's are cut between rows, so that everyone's state comes to the same size.
    """

    def __init__(
        self,
        parameters: Parameters,
        routing: Routing,
        roles: Mapping[str, ParamRole],
        config: OptimConfig,
        world: World,
    ) -> None:
        self.world = world
        n = world.size
        owners = balanced([_newton_schulz_cost(parameters[name], roles[name], config) for name in routing.muon], n)
        names = [[name for name, owner in zip(routing.muon, owners, strict=True) if owner == r] for r in range(n)]
        muon = [[_rows(name, parameters[name], 0, len(parameters[name])) for name in own] for own in names]
        adamw = (*routing.adamw_decayed, *routing.adamw_plain)
        tensors = [parameters[name] for name in adamw]
        cuts = poured(
            [len(t) for t in tensors],
            [_ADAMW_MOMENTS * t[0].nbytes for t in tensors],
            [sum(piece.tensor.nbytes for piece in own) for own in muon],
        )
        rest = [[_rows(adamw[c.index], tensors[c.index], c.start, c.stop) for c in own] for own in cuts]
        self.muon, self.adamw = muon[world.rank], rest[world.rank]
        self.everyone = [[*m, *a] for m, a in zip(muon, rest, strict=True)]
        """The pieces of every process, by rank. Together they are all parameters, each row once."""

    def publish(self) -> None:
        """Each sends its own to all."""
        for rank, pieces in enumerate(self.everyone):
            weights = [piece.tensor.detach() for piece in pieces]
            if not weights:
                continue
            if rank == self.world.rank:
                flat = torch.cat([w.reshape(-1) for w in weights])
            else:
                flat = weights[0].new_empty(sum(w.numel() for w in weights))
            dist.broadcast(flat, group_src=rank, group=self.world.group)
            if rank != self.world.rank:
                sent = torch.split(flat, [w.numel() for w in weights])
                torch._foreach_copy_(weights, [s.view_as(w) for s, w in zip(sent, weights, strict=True)])


class ByRows(Division):
    """FSDP2: the rows of each parameter that are here, none of some."""

    def __init__(self, parameters: Parameters, routing: Routing, world: World) -> None:
        self.world = world
        adamw = (*routing.adamw_decayed, *routing.adamw_plain)
        self.muon = [self._local(name, parameters[name]) for name in routing.muon]
        # Muon exchanges its own, in which everyone takes part; to AdamW nothing is nothing.
        self.adamw = [p for name in adamw if (p := self._local(name, parameters[name])).tensor.numel()]

    def make_muon(self, group: dict[str, Any], **options: Any) -> Muon:
        """Which gathers its matrices."""
        return ShardedMuon([group], world=self.world, **options)

    def publish(self) -> None:
        """FSDP2 gathers weights where they are used."""

    def _local(self, name: str, parameter: nn.Parameter) -> Piece:
        start, stop = chunk(len(parameter), self.world.size, self.world.rank)
        own = here(parameter.detach())
        assert len(own) == stop - start, "FSDP2 divides rows otherwise"
        return Piece(name, parameter, start, nn.Parameter(own))


def _newton_schulz_cost(parameter: nn.Parameter, role: ParamRole, config: OptimConfig) -> int:
    """Floating point operations that its matrices take, in the form that is taken for them here."""
    dtype, columns = compute_dtype(parameter), parameter.shape[1]
    return sum(flops((m, columns), dtype, config.ns_coefficients, config.ns_steps) for m in role.matrix_rows)


def _rows(name: str, parameter: nn.Parameter, start: int, stop: int) -> Piece:
    return Piece(name, parameter, start, nn.Parameter(parameter.detach()[start:stop]))
