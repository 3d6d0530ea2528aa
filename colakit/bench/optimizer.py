"""Muon's step against its alternatives on the same matrices: how much Newton–Schulz costs, and what its form saves.

All in one process and interleaved, so that a slow moment of the machine meets every contestant.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from colakit.build import Machine, build_model, build_optimizer
from colakit.config.schema import OptimConfig, RunConfig
from colakit.optim.muon import Muon
from colakit.optim.newton_schulz import Coefficients, compute_dtype, normalize_, textbook
from colakit.records.bench import OptimizerBenchRecord

TORCH_MUON_ONE_EACH = "torch.optim.Muon: one matrix of each shape was timed, and multiplied by their number"


class TextbookMuon(Muon):
    """Muon with every shape in the textbook's form, batched, in the same type."""

    def _orthogonalize(self, stack: Tensor, coefficients: Coefficients, steps: int) -> Tensor:
        x = normalize_(stack)
        return textbook(x.to(compute_dtype(x)), coefficients, steps).to(x.dtype)


@dataclass(frozen=True)
class _Timed:
    """A contestant: pieces of work, and how often each counts."""

    pieces: Sequence[tuple[Callable[[], object], int]]

    def ms(self, device: torch.device) -> float:
        """Once through all pieces."""
        total = 0.0
        for work, times in self.pieces:
            _wait(device)
            started = time.perf_counter()
            work()
            _wait(device)
            total += times * 1000.0 * (time.perf_counter() - started)
        return total


def bench_optimizer(config: RunConfig, machine: Machine, repeats: int) -> OptimizerBenchRecord:
    """Medians of `repeats` interleaved steps on the matrices that Muon gets in `config`, which trains by Muon."""
    model = build_model(config, machine)
    muon = build_optimizer(model, config.optim).parts["muon"]
    assert isinstance(muon, Muon)
    (group,) = muon.param_groups
    weights: list[nn.Parameter] = group["params"]
    rows: list[tuple[int, ...]] = group["matrix_rows"]
    generator = torch.Generator(machine.device).manual_seed(config.train.seed)
    for p in weights:
        p.grad = torch.randn(p.shape, generator=generator, device=p.device)
    copies = [_copies(weights) for _ in range(2)]
    contestants = {
        "muon": _Timed([(muon.step, 1)]),
        "textbook": _Timed([(_textbook(copies[0], group).step, 1)]),
        "torch_muon": _torch_muon(group, machine.device),
        "adamw": _Timed([(_adamw(copies[1], config.optim).step, 1)]),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():  # the first step makes the state
        contestant.ms(machine.device)
    for _ in range(repeats):
        for name, contestant in contestants.items():
            times[name].append(contestant.ms(machine.device))
    ms = {name: statistics.median(each) for name, each in times.items()}
    on_cuda = machine.device.type == "cuda"
    return OptimizerBenchRecord(
        preset=config.preset,
        device=str(machine),
        dtype=str(compute_dtype(weights[0])).removeprefix("torch."),
        matrices=sum(map(len, rows)),
        parameters=sum(p.numel() for p in weights),
        repeats=repeats,
        muon_ms=ms["muon"],
        textbook_ms=ms["textbook"],
        torch_muon_ms=ms["torch_muon"],
        adamw_ms=ms["adamw"],
        textbook_over_muon=ms["textbook"] / ms["muon"],
        torch_muon_over_muon=ms["torch_muon"] / ms["muon"],
        muon_over_adamw=ms["muon"] / ms["adamw"],
        muon_flops=muon.flops_per_step(),
        state_bytes=sum(state["momentum_buffer"].nbytes for state in muon.state.values()),
        workspace_bytes=muon.workspace_bytes(),
        reason=None if on_cuda else TORCH_MUON_ONE_EACH,
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _copies(weights: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The same weights, which share the gradients."""
    copies = [nn.Parameter(p.detach().clone()) for p in weights]
    for copy, p in zip(copies, weights, strict=True):
        copy.grad = p.grad
    return copies


def _textbook(weights: list[nn.Parameter], group: dict[str, Any]) -> TextbookMuon:
    options = {key: value for key, value in group.items() if key not in ("params", "matrix_rows")}
    return TextbookMuon([{"params": weights, "matrix_rows": group["matrix_rows"]}], **options)


def _adamw(weights: list[nn.Parameter], c: OptimConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        weights, lr=c.lr, betas=(c.beta1, c.beta2), eps=c.eps, weight_decay=c.weight_decay, fused=True
    )


def _torch_muon(group: dict[str, Any], device: torch.device) -> _Timed:
    """On CUDA all matrices; on a CPU, where a step takes minutes, one of each shape."""
    matrices: dict[torch.Size, list[nn.Parameter]] = {}
    for p, rows in zip(group["params"], group["matrix_rows"], strict=True):
        for part, gradient in zip(torch.split(p.detach(), rows), torch.split(p.grad, rows), strict=True):
            matrix = nn.Parameter(part.clone())
            matrix.grad = gradient.clone()
            matrices.setdefault(matrix.shape, []).append(matrix)
    same = ("lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "ns_steps")
    options = {key: group[key] for key in same} | {"adjust_lr_fn": group["update_scaling"]}
    if device.type == "cuda":
        return _Timed([(torch.optim.Muon([m for own in matrices.values() for m in own], **options).step, 1)])
    return _Timed([(torch.optim.Muon(own[:1], **options).step, len(own)) for own in matrices.values()])
