"""One optimizer object over Muon and AdamW: one learning rate, one state dict."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from colakit.config.schema import OptimConfig
from colakit.model.linear import ParamRole
from colakit.optim.clock import Clock
from colakit.optim.groups import Routing, route
from colakit.optim.muon import Muon
from colakit.records.run import OptimizerPart


class CombinedOptimizer:
    """Muon for the matrices (where the configuration asks for it) and AdamW for the rest, stepped together."""

    def __init__(self, model: nn.Module, roles: dict[str, ParamRole], config: OptimConfig) -> None:
        self.routing: Routing = route(model, roles, muon=config.optimizer == "muon")
        parameters = dict(model.named_parameters())
        self._names = {parameter: name for name, parameter in parameters.items()}
        self.parts: dict[str, Optimizer] = {}
        if self.routing.muon:
            group = {
                "params": [parameters[n] for n in self.routing.muon],
                "matrix_rows": [roles[n].matrix_rows for n in self.routing.muon],
            }
            self.parts["muon"] = Muon(
                [group],
                lr=config.lr,
                momentum=config.momentum,
                nesterov=config.nesterov,
                weight_decay=config.weight_decay,
                ns_steps=config.ns_steps,
                ns_coefficients=config.ns_coefficients,
                update_scaling=config.update_scaling,
            )
        adamw = [
            {"params": [parameters[n] for n in self.routing.adamw_decayed], "weight_decay": config.weight_decay},
            {"params": [parameters[n] for n in self.routing.adamw_plain], "weight_decay": 0.0},
        ]
        if groups := [g for g in adamw if g["params"]]:
            self.parts["adamw"] = AdamW(
                groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
            )
        device = next(model.parameters()).device
        self._clocks = {name: Clock(device) for name in self.parts}

    def set_lr(self, lr: float) -> None:
        """Give every group of both parts this learning rate."""
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = lr

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters from their gradients."""
        for name, part in self.parts.items():
            with self._clocks[name].measure():
                part.step()

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

    def state_dict(self) -> dict[str, Tensor]:
        """All state by part, parameter and kind, as ``muon.blocks.0.mlp.down.a.momentum_buffer``; empty before a step.

        What is not a tensor follows from the configuration.
        """
        return {
            f"{part}.{self._names[p]}.{key}": optimizer.state[p][key]
            for part, optimizer in self.parts.items()
            for p in _parameters(optimizer)
            for key in _KEYS[part]
            if optimizer.state[p]
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put copies of `state` in place of all there is. Raises ValueError where it is that of other parameters."""
        left = dict(state)
        for part, optimizer in self.parts.items():
            optimizer.state.clear()
            for p in _parameters(optimizer) if state else ():
                for key in _KEYS[part]:
                    name = f"{part}.{self._names[p]}.{key}"
                    if name not in left:
                        raise ValueError(f"{name} is missing.")
                    value = left.pop(name)
                    if value.shape not in (p.shape, ()):
                        raise ValueError(f"{name} has the shape {tuple(value.shape)}, its parameter {tuple(p.shape)}.")
                    # Copied also where it lies on the device: torch aligns what it allocates, and files do not.
                    optimizer.state[p][key] = value.to(p.device, copy=True)
        if left:
            raise ValueError(f"{sorted(left)[0]} is of no parameter.")


_KEYS = {"muon": ("momentum_buffer",), "adamw": ("step", "exp_avg", "exp_avg_sq")}


def _parameters(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    return (p for group in optimizer.param_groups for p in group["params"])
