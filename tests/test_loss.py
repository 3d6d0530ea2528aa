"""The next-token loss against `F.cross_entropy` in float64; chunks change nothing.

Tolerance: `loss_sums` takes logits to float32 (6e-8 relative each) and sums some forty terms near 4, so 1e-5 absolute
on the sum; gradients are entries of about 1, to 1e-6.
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colakit.analysis import chunking
from colakit.analysis.chunking import MAX_LOGITS
from colakit.loss import IGNORE, loss_sums

B, T, D, V = 3, 7, 5, 11


def problem(seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(D, V)
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    hidden = torch.randn(B, T, D, generator=generator).requires_grad_()
    targets = torch.randint(V, (B, T), generator=generator)
    targets[0, 3:] = IGNORE
    targets[2, 0] = IGNORE
    return head, hidden, targets


def oracle(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = hidden.double() @ head.weight.double().T + head.bias.double()
    real = targets != IGNORE
    return F.cross_entropy(logits[real], targets[real], reduction="sum")


def gradients(value: Tensor, *wrt: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, wrt)


@pytest.mark.parametrize("max_logits", [MAX_LOGITS, 1, V, 2 * V, 4 * V + 3, 20 * V, 21 * V])
def test_sums_and_gradients_are_cross_entropy_s_in_any_chunks(max_logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token per chunk, chunks that do not divide the 21 tokens, and all at once."""
    monkeypatch.setattr(chunking, "MAX_LOGITS", max_logits)
    head, hidden, targets = problem()
    wrt = (hidden, head.weight, head.bias)
    sums, expected = loss_sums(hidden, head.weight, head.bias, targets), oracle(head, hidden, targets)
    assert sums.nll.dtype == torch.float32
    assert abs(float(sums.nll.detach()) - float(expected.detach())) < 1e-5
    for own, other in zip(gradients(sums.nll, *wrt), gradients(expected, *wrt), strict=True):
        torch.testing.assert_close(own, other, rtol=0.0, atol=2e-6)
    real = targets != IGNORE
    right = head(hidden).argmax(dim=-1)[real] == targets[real]
    assert int(sums.correct) == int(right.sum())
    assert not sums.correct.is_floating_point()


def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the logits, one for each product that makes some."""
    shapes: list[tuple[int, ...]] = []
    honest = F.linear

    def linear(*factors: Any) -> Tensor:
        logits = honest(*factors)
        shapes.append(tuple(logits.shape))
        return logits

    monkeypatch.setattr(F, "linear", linear)
    return shapes


def test_chunks_hold_no_more_than_max_logits_and_none_is_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "MAX_LOGITS", 4 * V + 3)
    shapes = products(monkeypatch)
    head, hidden, targets = problem()
    loss_sums(hidden, head.weight, head.bias, targets).nll.backward()
    assert shapes == [(4, V)] * 5 + [(1, V)]


@pytest.mark.parametrize("scale", [1.0, -0.25])
def test_gradients_are_scaled_by_what_is_made_of_the_loss(scale: float) -> None:
    head, hidden, targets = problem()
    wrt = (hidden, head.weight, head.bias)
    own = gradients(scale * loss_sums(hidden, head.weight, head.bias, targets).nll, *wrt)
    for gradient, expected in zip(own, gradients(scale * oracle(head, hidden, targets), *wrt), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0.0, atol=2e-6)


def test_gradients_cannot_be_had_twice() -> None:
    """They are scaled in place: a second time would give others."""
    head, hidden, targets = problem()
    nll = loss_sums(hidden, head.weight, head.bias, targets).nll
    nll.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        nll.backward()


def test_without_gradients_none_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    honest = torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda t, **options: (made.append(t.shape), honest(t, **options))[1])
    head, hidden, targets = problem()
    with torch.no_grad():
        sums = loss_sums(hidden, head.weight, head.bias, targets)
    assert not made
    assert not sums.nll.requires_grad
    assert float(sums.nll) == pytest.approx(oracle(head, hidden, targets).item(), abs=1e-5)
    loss_sums(hidden, head.weight, head.bias, targets)
    assert made == [(B * T, D), (V, D), (V,)]


@pytest.mark.parametrize("max_logits", [MAX_LOGITS, 5 * V])
def test_under_autocast_products_are_bfloat16_and_gradients_float32(
    monkeypatch: pytest.MonkeyPatch, max_logits: int
) -> None:
    """bfloat16 keeps 8 bits: logits of up to 8 are off by 0.03, entries of gradients by as much of themselves."""
    monkeypatch.setattr(chunking, "MAX_LOGITS", max_logits)
    head, hidden, targets = problem()
    seen = []
    honest = F.linear
    monkeypatch.setattr(F, "linear", lambda *f: (seen.append(f[0].dtype), honest(*f))[1])
    wrt = (hidden, head.weight, head.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = loss_sums(hidden, head.weight, None, targets)
    assert set(seen) == {torch.bfloat16}
    assert sums.nll.dtype == torch.float32
    own = gradients(sums.nll, *wrt[:2])
    real = targets != IGNORE
    logits = hidden.double() @ head.weight.double().T
    exact = F.cross_entropy(logits[real], targets[real], reduction="sum")
    assert float(sums.nll.detach()) == pytest.approx(float(exact.detach()), abs=0.2)
    for gradient, other in zip(own, gradients(exact, *wrt[:2]), strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, other, rtol=0.05, atol=0.05)


def test_max_logits_is_256_mib_of_float32() -> None:
    assert MAX_LOGITS * 4 == 256 * 2**20


def test_ignored_targets_count_nowhere() -> None:
    head, hidden, targets = problem()
    before = loss_sums(hidden, head.weight, head.bias, targets)
    (gradient,) = gradients(before.nll, hidden)
    assert not gradient[targets == IGNORE].any()
    assert bool(gradient[targets != IGNORE].any(dim=-1).all())
    other = hidden.detach().clone()
    other[targets == IGNORE] = 1e4
    after = loss_sums(other, head.weight, head.bias, targets)
    assert torch.equal(before.nll, after.nll)
    assert torch.equal(before.correct, after.correct)


@pytest.mark.parametrize("max_logits", [MAX_LOGITS, 2 * V])
def test_no_real_target_is_a_sum_of_zero(max_logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "MAX_LOGITS", max_logits)
    head, hidden, targets = problem()
    sums = loss_sums(hidden, head.weight, head.bias, torch.full_like(targets, IGNORE))
    assert float(sums.nll.detach()) == 0.0
    assert int(sums.correct) == 0


def test_there_is_no_label_smoothing() -> None:
    """A known trap. Smoothing by ε would leave a confident, right head with at least ε·(gap between logits)·(V−1)/V."""
    targets = torch.tensor([[0, 3, 5], [2, 1, 4]])
    confident = 60.0 * F.one_hot(targets, V).float()
    sums = loss_sums(confident, torch.eye(V), None, targets)
    assert float(sums.nll) < 1e-12
    assert int(sums.correct) == 6


def test_an_ignorant_head_has_ln_v_per_token() -> None:
    targets = torch.tensor([[0, 3, 5], [2, 1, 4]])
    sums = loss_sums(torch.zeros(2, 3, V), torch.eye(V), None, targets)
    assert float(sums.nll.detach()) == pytest.approx(6 * math.log(V), rel=1e-6)


def test_logits_in_bfloat16_are_summed_in_float32() -> None:
    head, hidden, targets = problem()
    half = nn.Linear(D, V).to(torch.bfloat16)
    half.load_state_dict(head.state_dict())
    sums = loss_sums(hidden.detach().bfloat16(), half.weight, half.bias, targets)
    assert sums.nll.dtype == torch.float32
    logits = (hidden.detach().bfloat16() @ half.weight.T).double() + half.bias.double()
    real = targets != IGNORE
    assert abs(float((sums.nll - F.cross_entropy(logits[real], targets[real], reduction="sum")).detach())) < 1e-4
