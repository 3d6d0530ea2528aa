"""The next-token loss against `F.cross_entropy` in float64; chunks change nothing.

Tolerance: `loss_sums` takes logits to float32 (6e-8 relative each) and sums some forty terms near 4, so 1e-5 absolute
on the sum; gradients are entries of about 1, to 1e-6.
"""

import math

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
    sums, expected = loss_sums(head, hidden, targets, vocab_size=V), oracle(head, hidden, targets)
    assert sums.nll.dtype == torch.float32
    assert abs(float(sums.nll.detach()) - float(expected.detach())) < 1e-5
    for own, other in zip(gradients(sums.nll, *wrt), gradients(expected, *wrt), strict=True):
        torch.testing.assert_close(own, other, rtol=0.0, atol=2e-6)
    real = targets != IGNORE
    right = head(hidden).argmax(dim=-1)[real] == targets[real]
    assert int(sums.correct) == int(right.sum())
    assert not sums.correct.is_floating_point()


def test_chunks_hold_no_more_than_max_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "MAX_LOGITS", 4 * V + 3)
    head, hidden, targets = problem()
    shapes: list[torch.Size] = []

    def spying(h: Tensor) -> Tensor:
        logits = head(h)
        shapes.append(logits.shape)
        return logits

    loss_sums(spying, hidden, targets, vocab_size=V)
    assert shapes == [(4, V)] * 5 + [(1, V)]


def test_one_chunk_is_computed_once_and_several_once_more_each(monkeypatch: pytest.MonkeyPatch) -> None:
    for max_logits, expected in ((MAX_LOGITS, 1), (7 * V, 2 * 3)):
        monkeypatch.setattr(chunking, "MAX_LOGITS", max_logits)
        head, hidden, targets = problem()
        calls: list[int] = []
        sums = loss_sums(lambda h, c=calls, f=head: (c.append(1), f(h))[1], hidden, targets, vocab_size=V)
        sums.nll.backward()
        assert len(calls) == expected


def test_max_logits_is_256_mib_of_float32() -> None:
    assert MAX_LOGITS * 4 == 256 * 2**20


def test_ignored_targets_count_nowhere() -> None:
    head, hidden, targets = problem()
    before = loss_sums(head, hidden, targets, vocab_size=V)
    (gradient,) = gradients(before.nll, hidden)
    assert not gradient[targets == IGNORE].any()
    assert bool(gradient[targets != IGNORE].any(dim=-1).all())
    other = hidden.detach().clone()
    other[targets == IGNORE] = 1e4
    after = loss_sums(head, other, targets, vocab_size=V)
    assert torch.equal(before.nll, after.nll)
    assert torch.equal(before.correct, after.correct)


@pytest.mark.parametrize("max_logits", [MAX_LOGITS, 2 * V])
def test_no_real_target_is_a_sum_of_zero(max_logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "MAX_LOGITS", max_logits)
    head, hidden, targets = problem()
    sums = loss_sums(head, hidden, torch.full_like(targets, IGNORE), vocab_size=V)
    assert float(sums.nll.detach()) == 0.0
    assert int(sums.correct) == 0


def test_there_is_no_label_smoothing() -> None:
    """A known trap. Smoothing by ε would leave a confident, right head with at least ε·(gap between logits)·(V−1)/V."""
    targets = torch.tensor([[0, 3, 5], [2, 1, 4]])
    confident = 60.0 * F.one_hot(targets, V).float()
    sums = loss_sums(lambda h: h, confident, targets, vocab_size=V)
    assert float(sums.nll) < 1e-12
    assert int(sums.correct) == 6


def test_an_ignorant_head_has_ln_v_per_token() -> None:
    targets = torch.tensor([[0, 3, 5], [2, 1, 4]])
    sums = loss_sums(lambda h: h, torch.zeros(2, 3, V), targets, vocab_size=V)
    assert float(sums.nll.detach()) == pytest.approx(6 * math.log(V), rel=1e-6)


def test_logits_in_bfloat16_are_summed_in_float32() -> None:
    head, hidden, targets = problem()
    half = nn.Linear(D, V).to(torch.bfloat16)
    half.load_state_dict(head.state_dict())
    sums = loss_sums(half, hidden.detach().bfloat16(), targets, vocab_size=V)
    assert sums.nll.dtype == torch.float32
    logits = half(hidden.detach().bfloat16()).double()
    real = targets != IGNORE
    assert abs(float((sums.nll - F.cross_entropy(logits[real], targets[real], reduction="sum")).detach())) < 1e-4
