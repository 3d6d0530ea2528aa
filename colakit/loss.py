"""Next-token loss, in chunks of tokens so that the logits of a large vocabulary never stand in memory at once.

A chunk's gradients are made along with its loss, while its logits are there: nothing is computed twice, and one buffer
holds logits, probabilities and gradients in turn. PyTorch's ``linear_cross_entropy`` with chunks does the same, but
keeps to itself which token was the most probable.

Shapes: B batch, T time, K input width of the last product, V vocab, N = B·T tokens, C tokens of a chunk.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.amp import is_autocast_available
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from colakit.analysis.chunking import tokens_per_chunk

IGNORE = -100
"""The target of a position that has none: it counts in no sum. PyTorch's default ``ignore_index``."""


class LossSums(NamedTuple):
    """Sums over the real targets: scalar tensors, not yet divided by their number."""

    nll: Tensor
    """Negative log-likelihood, nats, float32."""
    correct: Tensor
    """Targets that were the most probable token, int64."""


def loss_sums(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> LossSums:
    """Sum of cross-entropies of the logits x·weightᵀ + bias at `targets`; those that are `IGNORE` do not count.

    x [B, T, K], weight [V, K], bias [V], targets [B, T]. Products are computed in autocast's type where that is on,
    softmax and sums in float32. The gradients can be had once.
    """
    with_gradients = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    sums = _Loss.apply(x.flatten(0, 1), weight, bias, targets.flatten(), with_gradients)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return LossSums(*sums)


class TokenScores(NamedTuple):
    """What a model made of each target: [N]; of a target that is `IGNORE`, nothing that means anything."""

    nll: Tensor
    """Negative log-likelihood, nats, float32."""
    rank: Tensor
    """How many tokens were more probable, int64; of equally probable ones, those of lower id come first. All, where a
    logit is no number."""


ScoresOfLogits = Callable[[Tensor, Tensor], TokenScores]
"""From logits [N, V], which may be lost, and targets [N]."""


@torch.no_grad()
def token_scores(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, of_logits: ScoresOfLogits | None = None
) -> TokenScores:
    """Each target's own part of what `loss_sums` adds up; arguments as there. → [B·T] each.

    `of_logits` may be `scores_of_logits`, compiled; unset, it is what computes the same in place.
    """
    x, targets = x.flatten(0, 1), targets.flatten()
    n = tokens_per_chunk(weight.shape[0])
    if of_logits is None:
        scratch = torch.empty(min(n, len(x)), weight.shape[0], device=x.device)
        of_logits = partial(scores_of_logits_, scratch=scratch)
    chunks = [
        of_logits(F.linear(x_c, weight, bias), t_c)
        for x_c, t_c in zip(torch.split(x, n), torch.split(targets, n), strict=True)
    ]
    return TokenScores(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


def scores_of_logits(logits: Tensor, targets: Tensor) -> TokenScores:
    """The scores of targets [N] by logits [N, V] of any type: to be compiled, into a pass or two over them."""
    logits = logits.float()
    ids = targets.clamp(min=0)[:, None]  # [N, 1]
    own = logits.gather(1, ids)
    # bfloat16 makes many equal: without an order among them, any of several would be the most probable one.
    is_before = torch.arange(logits.shape[1], device=logits.device) < ids
    rank = ((logits > own) | ((logits == own) & is_before)).sum(dim=-1)
    nll = logits.logsumexp(dim=-1) - own.squeeze(1)
    return TokenScores(nll, torch.where(nll.isnan(), logits.shape[1], rank))


def scores_of_logits_(logits: Tensor, targets: Tensor, scratch: Tensor) -> TokenScores:
    """The same in few passes where nothing is compiled: `logits` are lost, and so is `scratch` [≥ N, V] float32."""
    logits = logits.float()
    ids = targets.clamp(min=0)[:, None]  # [N, 1]
    own, highest = logits.gather(1, ids), logits.amax(dim=-1)
    # Compared into numbers: a CPU adds up numbers seven times as fast as truth values.
    scratch = scratch[: len(logits)]
    rank = torch.gt(logits, own, out=scratch).sum(dim=-1).long()
    if (torch.eq(logits, own, out=scratch).sum(dim=-1) > 1.0).any():
        scratch *= torch.arange(logits.shape[1], device=logits.device) < ids
        rank += scratch.sum(dim=-1).long()
    # The highest probability, 1/V at least, has a logarithm.
    most = torch.softmax(logits, dim=-1, out=logits).amax(dim=-1)
    nll = highest - own.squeeze(1) - most.log()
    return TokenScores(nll, torch.where(nll.isnan(), logits.shape[1], rank))


class _Loss(Function):
    """The two sums. With gradients, those by x, weight and bias wait for the backward pass, which scales them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, with_gradients: bool
    ) -> tuple[Tensor, Tensor]:
        device = x.device.type
        is_autocast = is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_autocast else x.dtype
        x_p, weight_p = x.to(dtype), weight.to(dtype)
        gradients = (
            [torch.zeros_like(t) if t is not None else None for t in (x, weight, bias)] if with_gradients else []
        )
        sums = LossSums(torch.zeros((), device=x.device), torch.zeros((), dtype=torch.int64, device=x.device))
        n = tokens_per_chunk(weight.shape[0])
        with torch.autocast(device, enabled=False) if is_autocast else nullcontext():
            for i in range(0, len(x), n):
                _add_chunk_(sums, gradients, slice(i, i + n), x_p, weight_p, bias, targets)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(sums.correct)
        return sums.nll, sums.correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_nll: Tensor, _by_correct: Tensor) -> tuple[Tensor | None, ...]:
        # In place: who asks twice is told by autograd that what it saved has been modified.
        return *(g.mul_(by_nll) if g is not None else None for g in ctx.saved_tensors), None, None


def _add_chunk_(
    sums: LossSums,
    gradients: list[Tensor | None],
    chunk: slice,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
) -> None:
    """Add to `sums` and `gradients`, by x, weight and bias, what the tokens of `chunk` give.

    A function of its own, so that nothing of a chunk is left when the next one begins.
    """
    x_c, t_c = x[chunk], targets[chunk]
    logits = F.linear(x_c, weight).float()  # [C, V]
    if bias is not None:
        logits += bias
    real = t_c != IGNORE
    rows, ids = torch.arange(len(t_c), device=t_c.device), t_c.clamp(min=0)
    highest, most_probable = logits.max(dim=-1)
    below_highest = highest - logits[rows, ids]
    # In place: every row is read before it is written. The highest probability, 1/V at least, has a logarithm.
    probabilities = torch.softmax(logits, dim=-1, out=logits)
    nll = below_highest - probabilities[rows, most_probable].log()
    sums.nll.add_(torch.where(real, nll, 0.0).sum())
    sums.correct.add_((most_probable == t_c).sum())
    if not gradients:
        return
    probabilities[rows, ids] -= 1.0
    by_x, by_weight, by_bias = gradients
    assert by_x is not None
    assert by_weight is not None
    by_logits, keep = probabilities.to(x.dtype), real[:, None].to(x.dtype)  # [C, V], [C, 1]
    by_x[chunk] = (by_logits @ weight).mul_(keep)
    if by_weight.dtype == x.dtype:
        torch.addmm(by_weight, by_logits.t(), x_c * keep, out=by_weight)
    else:
        by_weight += by_logits.t() @ (x_c * keep)
    if by_bias is not None:
        by_bias += torch.mv(probabilities.t(), real.float())
