"""Next-token loss, in chunks of tokens so that the logits of a large vocabulary never stand in memory at once.

Shapes: B batch, T time, D d_model, V vocab, N = B·T tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from colakit.analysis.chunking import is_chunked, tokens_per_chunk

IGNORE = -100
"""The target of a position that has none: it counts in no sum. PyTorch's default ``ignore_index``."""


class LossSums(NamedTuple):
    """Sums over the real targets: scalar tensors, not yet divided by their number."""

    nll: Tensor
    """Negative log-likelihood, nats, float32."""
    correct: Tensor
    """Targets that were the most probable token, int64."""


def loss_sums(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, *, vocab_size: int) -> LossSums:
    """Sum of cross-entropies of `head` on hidden [B, T, D] at targets [B, T]; those that are `IGNORE` do not count."""
    h, t = hidden.flatten(0, 1), targets.flatten()
    if not is_chunked(h.shape[0], vocab_size):
        return LossSums(*_chunk_sums(head, h, t))
    chunk = tokens_per_chunk(vocab_size)
    parts = [
        checkpoint(_chunk_sums, head, h_c, t_c, use_reentrant=False)
        for h_c, t_c in zip(torch.split(h, chunk), torch.split(t, chunk), strict=True)
    ]
    return LossSums(torch.stack([p[0] for p in parts]).sum(), torch.stack([p[1] for p in parts]).sum())


def _chunk_sums(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float()  # [N, V]
    nll = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    return nll, (logits.detach().argmax(dim=-1) == targets).sum()
