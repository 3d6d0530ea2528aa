"""One optimizer object over Muon and AdamW: one learning rate, one state dict."""

from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from colakit.config.schema import OptimConfig
from colakit.model.linear import ParamRole
from colakit.optim.clock import Clock
from colakit.optim.groups import Routing, route
from colakit.optim.muon import Muon
from colakit.records import OptimizerPart


class CombinedOptimizer:
    """Muon for the matrices (where the configuration asks for it) and AdamW for the rest, stepped together."""

    def __init__(self, model: nn.Module, roles: dict[str, ParamRole], config: OptimConfig) -> None:
        self.routing: Routing = route(model, roles, muon=config.optimizer == "muon")
        parameters = dict(model.named_parameters())
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

    def state_dict(self) -> dict[str, Any]:  # Any: torch's own state dicts
        """The state of both parts, by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # Any: torch's own state dicts
        """Restore both parts. Raises KeyError where a part is missing."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
