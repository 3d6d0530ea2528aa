"""One optimizer object over Muon and AdamW: one learning rate, one state dict."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from colakit.config.schema import OptimConfig
from colakit.model.linear import ParamRole
from colakit.optim.clock import Clock
from colakit.optim.groups import Routing, route
from colakit.optim.muon import Muon
from colakit.optim.pieces import Division, Parameters, Piece, Whole
from colakit.records.run import OptimizerPart


class Entry(NamedTuple):
    """A tensor of the optimizer's state: of a piece, shaped like it, or a single number that is the same for all."""

    name: str
    """As ``muon.blocks.0.mlp.down.a.momentum_buffer``."""
    piece: Piece
    tensor: Tensor


class CombinedOptimizer:
    """Muon for the matrices (where the configuration asks for it) and AdamW for the rest, stepped together.

    Of several processes each updates what `divide` gives it.
    """

    def __init__(
        self,
        model: nn.Module,
        roles: Mapping[str, ParamRole],
        config: OptimConfig,
        divide: Callable[[Parameters, Routing], Division] = Whole,
    ) -> None:
        parameters = dict(model.named_parameters())
        self.routing: Routing = route(model, roles, muon=config.optimizer == "muon")
        self.division = division = divide(parameters, self.routing)
        self._parameters = list(parameters.values())
        order = {name: i for i, name in enumerate(parameters)}
        self._all = sorted((*division.muon, *division.adamw), key=lambda piece: order[piece.name])
        self.parts: dict[str, Optimizer] = {}
        self._pieces: dict[str, Sequence[Piece]] = {}
        if self.routing.muon:
            self._pieces["muon"] = division.muon
            self.parts["muon"] = division.make_muon(
                {
                    "params": [piece.tensor for piece in division.muon],
                    "matrix_rows": [roles[piece.name].matrix_rows for piece in division.muon],
                },
                lr=config.lr,
                momentum=config.momentum,
                nesterov=config.nesterov,
                weight_decay=config.weight_decay,
                ns_steps=config.ns_steps,
                ns_coefficients=config.ns_coefficients,
                update_scaling=config.update_scaling,
            )
        # On a CPU the fused kernel rounds what is left behind the last whole vector of 16 numbers otherwise. Vectors,
        # as biases are, may be cut anywhere among processes; rows of every preset's matrices hold whole ones.
        plain_fused = self._all[0].tensor.device.type != "cpu"
        groups = [
            {
                "params": [p.tensor for p in division.adamw if p.name in names],
                "weight_decay": weight_decay,
                "fused": fused,
                "foreach": not fused,
            }
            for names, weight_decay, fused in (
                (self.routing.adamw_decayed, config.weight_decay, True),
                (self.routing.adamw_plain, 0.0, plain_fused),
            )
        ]
        if groups := [g for g in groups if g["params"]]:
            self._pieces["adamw"] = division.adamw
            self.parts["adamw"] = AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps)
        device = self._all[0].tensor.device
        self._clocks = {name: Clock(device) for name in self.parts}

    def set_lr(self, lr: float) -> None:
        """Give every group of both parts this learning rate."""
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = lr

    def attach(self) -> None:
        """Take the gradients, which are whole now, as far as they are to be used here."""
        for piece in self._all:
            piece.attach()

    def gradient_norm(self) -> Tensor:
        """The global norm of the gradient, wherever its parts are."""
        norm = nn.utils.get_total_norm([p.tensor.grad for p in self._all if p.tensor.grad is not None])
        if self.division.world.size == 1:
            return norm
        return self.division.world.sum_(norm.square()).sqrt()

    def clip(self, norm: Tensor, to: float) -> None:
        """Scale the gradient, whose norm is given, to one of `to` at most."""
        nn.utils.clip_grads_with_norm_([piece.tensor for piece in self._all], to, norm)

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters from their gradients."""
        for name, part in self.parts.items():
            with self._clocks[name].measure():
                part.step()
        self.division.publish()

    def costs(self, last: int = 1000) -> tuple[OptimizerPart, ...]:
        """What each part costs, its time the median of the `last` steps; empty before the first."""
        found = []
        for name, part in self.parts.items():
            ms = self._clocks[name].median_ms(last)
            if ms is not None:
                size = sum(p.numel() for group in part.param_groups for p in group["params"])
                flops = part.flops_per_step() if isinstance(part, Muon) else 0
                found.append(OptimizerPart(name, size, ms, flops))
        return tuple(found)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for part in self.parts.values():
            part.zero_grad(set_to_none=True)
        for p in self._parameters:  # of which some may be others' to update
            p.grad = None

    def entries(self) -> Iterator[Entry]:
        """All state that is here; none before a step. What is not a tensor follows from the configuration."""
        for part, optimizer in self.parts.items():
            for piece in self._pieces[part]:
                if state := optimizer.state[piece.tensor]:
                    yield from (Entry(f"{part}.{piece.name}.{key}", piece, state[key]) for key in _KEYS[part])

    def state_dict(self) -> dict[str, Tensor]:
        """That of `entries`, by name."""
        return {name: tensor for name, _, tensor in self.entries()}

    def reset(self, *, with_state: bool) -> None:
        """Forget all state; with it, make zeros in its place, to be filled."""
        for part, optimizer in self.parts.items():
            optimizer.state.clear()
            for piece in self._pieces[part] if with_state else ():
                like = piece.tensor.detach()
                for key in _KEYS[part]:
                    number = key in _NUMBERS
                    optimizer.state[piece.tensor][key] = like.new_zeros(()) if number else torch.zeros_like(like)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put copies of `state` in place of all there is: that of whole parameters, of which the pieces take theirs.

        Raises ValueError where it is that of other parameters.
        """
        self.reset(with_state=bool(state))
        left = dict(state)
        for name, piece, tensor in self.entries():
            value = left.pop(name, None)
            if value is None:
                raise ValueError(f"{name} is missing.")
            whole = piece.parameter.shape if tensor.ndim else torch.Size()
            if value.shape != whole:
                raise ValueError(f"{name} has the shape {tuple(value.shape)}, its parameter {tuple(whole)}.")
            # Copied also where it lies on the device: torch aligns what it allocates, and files do not.
            tensor.copy_(value[piece.start : piece.start + len(piece.tensor)] if tensor.ndim else value)
        if left and self.division.world.size == 1:
            raise ValueError(f"{sorted(left)[0]} is of no parameter.")


_KEYS = {"muon": ("momentum_buffer",), "adamw": ("step", "exp_avg", "exp_avg_sq")}
_NUMBERS = ("step",)
