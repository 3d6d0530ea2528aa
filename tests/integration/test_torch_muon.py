"""Muon against `torch.optim.Muon`, for a matrix of every shape that a preset has, at full size.

torch's iterates in bfloat16; here it is made to iterate in float32, so that the two differ by roundings alone. Its norm
is taken in float64: one float32 sum over a million squares is off by 1e-5, as much as all the rest may differ.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from colakit.analysis.flops import muon_matrices
from colakit.analysis.inventory import group_of, parameters
from colakit.config.load import resolve
from colakit.config.presets import preset_names
from colakit.config.schema import OptimConfig
from colakit.optim.muon import Muon

LR, DECAY = 0.02, 0.1


def shapes(*sets: str) -> list[tuple[int, int]]:
    """Of every matrix that Muon would get, in any preset: each once."""
    found = {
        (p.shape[0] // p.matrices, p.shape[1])
        for preset in preset_names()
        for p in parameters(resolve(preset, sets=sets).config.model)
        if group_of(p.role, muon=True) == "muon"
    }
    return sorted(found)


def test_they_are_all_shapes() -> None:
    """Dense, low-rank, CoLA_FAN's branches and ATF's layer."""
    assert len(shapes()) == 16
    counted = {tuple(sorted(s)) for s in shapes()}
    assert counted == {s for preset in preset_names() for s in muon_matrices(resolve(preset).config.model)}


def random(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator)


def ill_conditioned(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Condition 1e5: rows (or columns) of ever smaller size."""
    short = min(rows, columns)
    scales = torch.logspace(0, -5, short)
    scaled = torch.randn(short, max(rows, columns), generator=generator) * scales[:, None]
    return scaled if rows < columns else scaled.mT.contiguous()


def rank_deficient(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    rank = max(1, min(rows, columns) // 8)
    return torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)


@pytest.mark.parametrize(
    ("gradient", "tolerance"),
    [
        (random, 1e-5),
        pytest.param(ill_conditioned, 1e-3, marks=pytest.mark.slow),
        pytest.param(rank_deficient, 1e-3, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(("rows", "columns"), shapes())
def test_one_step_and_ten_are_torch_s(
    rows: int,
    columns: int,
    gradient: Callable[[int, int, torch.Generator], Tensor],
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.float)
    monkeypatch.setattr(Tensor, "norm", lambda x: x.detach().double().square().sum().sqrt().float())
    generator = torch.Generator().manual_seed(rows + columns)
    start = torch.randn(rows, columns, generator=generator)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    c = OptimConfig()
    options = {
        "lr": LR,
        "weight_decay": DECAY,
        "momentum": c.momentum,
        "nesterov": c.nesterov,
        "ns_coefficients": c.ns_coefficients,
        "ns_steps": c.ns_steps,
    }
    group = {"params": [mine], "matrix_rows": [(rows,)]}
    optimizers = [
        Muon([group], **options, update_scaling=c.update_scaling),  # type: ignore[arg-type]
        torch.optim.Muon([theirs], **options, adjust_lr_fn=c.update_scaling),  # type: ignore[arg-type]
    ]
    for step in range(1, 11):
        mine.grad = gradient(rows, columns, generator)
        theirs.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        if step in (1, 10):
            moved = theirs.detach() - start * (1 - LR * DECAY) ** step
            assert float((mine - theirs).norm() / moved.norm()) < tolerance
