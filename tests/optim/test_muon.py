"""Muon against a slow version that holds each matrix alone, both in float64.

The two differ by roundings that the Gram form enlarges some 20,000 times per step: 1e-10 after six steps is ample, and
far below any wrong constant.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from colakit.bench.storages import LiveStorages
from colakit.optim import muon as muon_module
from colakit.optim.muon import Muon
from tests.oracles import reference as ref

TIGHT = {"rtol": 0.0, "atol": 1e-10}
SETTINGS: dict[str, Any] = {
    "lr": 0.03,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 0.4,
    "ns_steps": 5,
    "ns_coefficients": (3.4445, -4.7750, 2.0315),
    "update_scaling": "match_rms_adamw",
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def muon(params: list[Tensor], rows: list[tuple[int, ...]], **changes: Any) -> Muon:
    return Muon([{"params": params, "matrix_rows": rows}], **(SETTINGS | changes))


SHAPES = [(9, 5), (12, 4), (3, 7), (4, 5), (18, 3)]
ROWS = [(4, 5), (4, 4, 4), (3,), (4,), (9, 9)]  # unequal rows; (4, 5) is met twice, in a stack and alone


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.0},
        {"nesterov": False},
        {"weight_decay": 0.0},
        {"ns_steps": 3},
        {"ns_steps": 10},
        {"ns_coefficients": (2.0, -1.5, 0.5)},
        {"update_scaling": "original"},
    ],
)
def test_six_steps_are_those_of_the_slow_version(changes: dict[str, Any]) -> None:
    params = [nn.Parameter(randn(*s, seed=i)) for i, s in enumerate(SHAPES)]
    optimizer = muon(params, ROWS, **changes)
    slow = [
        [ref.SlowMuon(m, **(SETTINGS | changes)) for m in torch.split(p.detach(), rows)]
        for p, rows in zip(params, ROWS, strict=True)
    ]
    for step in range(6):
        for i, (p, rows, alone) in enumerate(zip(params, ROWS, slow, strict=True)):
            p.grad = randn(*p.shape, seed=100 + 10 * step + i)
            for one, g in zip(alone, torch.split(p.grad, rows), strict=True):
                one.step(g)
        optimizer.step()
        for p, alone in zip(params, slow, strict=True):
            torch.testing.assert_close(p.detach(), torch.cat([one.w for one in alone]), **TIGHT)


def test_in_float32_it_stays_close_to_float64() -> None:
    """The iteration loses some 3e-5 of an orthogonal matrix; the step is that times lr·0.2·√9."""
    w, g = randn(9, 5), randn(9, 5, seed=1)
    p = nn.Parameter(w.float())
    p.grad = g.float()
    muon([p], [(4, 5)]).step()
    slow = [ref.SlowMuon(m, **SETTINGS) for m in torch.split(w, (4, 5))]
    for one, part in zip(slow, torch.split(g, (4, 5)), strict=True):
        one.step(part)
    torch.testing.assert_close(p.detach().double(), torch.cat([s.w for s in slow]), rtol=0.0, atol=5e-6)


def test_a_stack_is_the_same_matrices_held_apart() -> None:
    whole = nn.Parameter(randn(9, 5))
    parts = [nn.Parameter(m.clone()) for m in torch.split(whole.detach(), (4, 3, 2))]
    one, many = muon([whole], [(4, 3, 2)]), muon(list(parts), [(4,), (3,), (2,)])
    for step in range(3):
        whole.grad = randn(9, 5, seed=step + 1)
        for part, g in zip(parts, torch.split(whole.grad, (4, 3, 2)), strict=True):
            part.grad = g.clone()
        one.step()
        many.step()
    torch.testing.assert_close(whole.detach(), torch.cat([p.detach() for p in parts]), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e4, 1e8])
def test_the_direction_ignores_the_gradient_s_scale(scale: float) -> None:
    ends = []
    for factor in (1.0, scale):
        p = nn.Parameter(randn(9, 5).float())
        optimizer = muon([p], [(4, 5)])
        for step in range(3):
            p.grad = factor * randn(9, 5, seed=step + 1).float()
            optimizer.step()
        ends.append(p.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=0.0, atol=1e-4)


def test_a_gradient_that_has_died_away_never_turns_into_nan() -> None:
    """A branch that gets no more gradient: its momentum shrinks by 0.95 a step through all small float32 numbers."""
    p = nn.Parameter(randn(9, 5).float())
    optimizer = muon([p], [(4, 5)], weight_decay=0.0, lr=1e-4, momentum=0.95)
    p.grad = randn(9, 5, seed=1).float()
    optimizer.step()
    p.grad = torch.zeros_like(p)
    for _ in range(1300):
        optimizer.step()
    assert bool(torch.isfinite(p).all())


def test_no_gradient_and_no_momentum_leave_weight_decay_alone() -> None:
    p = nn.Parameter(randn(9, 5).float())
    before = p.detach().clone()
    p.grad = torch.zeros_like(p)
    muon([p], [(4, 5)]).step()
    torch.testing.assert_close(p.detach(), before * (1 - 0.03 * 0.4), rtol=1e-6, atol=0.0)


def test_a_parameter_without_gradient_is_left_alone() -> None:
    p, q = nn.Parameter(randn(9, 5).float()), nn.Parameter(randn(9, 5, seed=1).float())
    before = q.detach().clone()
    p.grad = torch.ones_like(p)
    optimizer = muon([p, q], [(4, 5), (9,)])
    optimizer.step()
    assert torch.equal(q, before)
    assert q not in optimizer.state


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (24, 96)])
def test_an_update_has_the_root_mean_square_of_an_adamw_step(shape: tuple[int, int]) -> None:
    """0.2·√max(M, K)·O has entries of about 0.2 (arXiv 2502.16982), where AdamW's have 0.2 to 0.4."""
    p = nn.Parameter(torch.zeros(shape))
    p.grad = randn(*shape).float()
    muon([p], [(shape[0],)], lr=1.0).step()
    assert 0.14 < float(p.detach().square().mean().sqrt()) < 0.24
    singular = torch.linalg.svdvals(p.detach()) / (0.2 * math.sqrt(max(shape)))
    assert float(singular.min()) > 0.6
    assert float(singular.max()) < 1.3


@pytest.mark.parametrize("rows", [(4, 4), (4, 6), (), (5,), (9, 9), (-3, 12), (0, 9)])
def test_rows_that_do_not_add_up_are_refused(rows: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \(9, 5\) does not hold matrices of rows"):
        muon([nn.Parameter(randn(9, 5))], [rows])


def test_a_vector_is_refused() -> None:
    with pytest.raises(ValueError, match="does not hold matrices"):
        muon([nn.Parameter(randn(9))], [(9,)])


def test_rows_are_needed_for_each_parameter() -> None:
    with pytest.raises(ValueError, match="each parameter needs its matrix_rows"):
        muon([nn.Parameter(randn(9, 5)), nn.Parameter(randn(4, 5))], [(9,)])


def test_a_closure_is_evaluated_with_gradients() -> None:
    p = nn.Parameter(randn(9, 5).float())
    optimizer = muon([p], [(9,)])

    def closure() -> float:
        loss = p.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == pytest.approx(float(randn(9, 5).float().square().sum()))
    assert p.grad is not None


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5, 6, 7])
@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (5, 10), (10, 13), (300, 420), (384, 257)])
def test_a_step_holds_the_workspace_of_one_shape(
    shape: tuple[int, int], steps: int, bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte, however many matrices and shapes there are: the largest group counts."""
    if bfloat16:
        for module in ("muon", "newton_schulz"):
            monkeypatch.setattr(f"colakit.optim.{module}.compute_dtype", lambda _: torch.bfloat16)
    rows, columns = shape
    params = [nn.Parameter(randn(n * rows, columns).float()) for n in (3, 4)] + [nn.Parameter(randn(4, 3).float())]
    optimizer = muon(list(params), [(rows,) * 3, (rows,) * 4, (4,)], ns_steps=steps)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    held = [t for p in params for t in (p, p.grad, optimizer.state[p]["momentum_buffer"])]
    assert sum(s["momentum_buffer"].nbytes for s in optimizer.state.values()) == sum(p.nbytes for p in params)
    with LiveStorages(held) as live:  # type: ignore[arg-type]  # all have gradients
        optimizer.step()
    norms = 7 * 4
    assert live.peak == pytest.approx(optimizer.workspace_bytes(), abs=norms)


def test_what_has_no_gradient_to_come_is_no_work() -> None:
    frozen = nn.Parameter(randn(9, 5).float(), requires_grad=False)
    moving = nn.Parameter(randn(4, 6).float())
    both, alone = muon([frozen, moving], [(9,), (4,)]), muon([moving], [(4,)])
    assert both.flops_per_step() == alone.flops_per_step() > 0
    assert both.workspace_bytes() == alone.workspace_bytes() > 0


def test_groups_and_states_with_other_matrices_are_refused() -> None:
    optimizer = muon([nn.Parameter(randn(9, 5))], [(4, 5)])
    for group in ({"matrix_rows": [(4,)]}, {}):
        with pytest.raises(ValueError, match="matri"):
            optimizer.add_param_group({"params": [nn.Parameter(randn(9, 5))], **group})
    other = muon([nn.Parameter(randn(7, 5))], [(3, 4)])
    with pytest.raises(ValueError, match=r"shape \(9, 5\) does not hold matrices of rows"):
        muon([nn.Parameter(randn(9, 5))], [(9,)]).load_state_dict(other.state_dict())


@pytest.mark.parametrize("limit", [1, 50, 100, 10**6])
def test_what_fits_into_one_batch_changes_nothing(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix is updated, however they are cut into batches; no batch is over the limit but one of one piece."""
    monkeypatch.setattr(muon_module, "_CPU_BATCH", limit)
    params = [nn.Parameter(randn(8, 5, seed=i)) for i in range(7)]
    slow = [[ref.SlowMuon(m, **SETTINGS) for m in torch.split(p.detach(), (4, 4))] for p in params]
    batches: list[int] = []
    plain = Muon._orthogonalize

    def watched(self: Muon, stack: Tensor, *options: Any) -> Tensor:
        batches.append(stack.numel())
        return plain(self, stack, *options)

    monkeypatch.setattr(Muon, "_orthogonalize", watched)
    optimizer = muon(list(params), [(4, 4)] * 7)
    for i, (p, alone) in enumerate(zip(params, slow, strict=True)):
        p.grad = randn(8, 5, seed=100 + i)
        for one, g in zip(alone, torch.split(p.grad, (4, 4)), strict=True):
            one.step(g)
    optimizer.step()
    for p, alone in zip(params, slow, strict=True):
        torch.testing.assert_close(p.detach(), torch.cat([one.w for one in alone]), **TIGHT)
    assert sum(batches) == 7 * 40
    assert batches == {1: [40] * 7, 50: [40] * 7, 100: [80, 80, 80, 40]}.get(limit, [280])


def test_matrices_of_one_shape_and_two_types_are_kept_apart() -> None:
    params = [nn.Parameter(randn(4, 6)), nn.Parameter(randn(4, 6, seed=1).float())]
    starts = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    muon(list(params), [(4,), (4,)]).step()
    for p, start in zip(params, starts, strict=True):
        assert not torch.equal(p, start)
        assert bool(torch.isfinite(p).all())


def test_autocast_around_a_step_changes_nothing() -> None:
    ends = []
    for enabled in (False, True):
        p = nn.Parameter(randn(5, 40).float())
        p.grad = randn(5, 40, seed=1).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            muon([p], [(5,)]).step()
        ends.append(p.detach())
    assert torch.equal(ends[0], ends[1])
