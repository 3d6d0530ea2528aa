"""Batches as functions of a position: no iterator state, so resuming at a step is exact and costs nothing.

Shapes: B sequences, T tokens each. A block holds T + 1 tokens; see `packing`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from colakit.data.packing import PAD, count_tokens
from colakit.loss import IGNORE

_CAPPED_SEED = 0


class BlockSource(Protocol):
    """What the loader reads: `Blocks`, or any other sequence of int32 arrays [T + 1]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[np.int32]: ...


@dataclass(frozen=True)
class Batch:
    """Tokens [B, T] and their targets [B, T], both int64. Behind the end of the data: token 0, target IGNORE."""

    tokens: torch.Tensor
    targets: torch.Tensor
    document_starts: torch.Tensor | None = None
    """Where a document begins, [B, T] bool, for a model that keeps documents apart; None: a row is read as one."""


class TrainLoader:
    """The training batches of every step, in an order that depends on `seed` and the number of blocks alone.

    Sample k of step s is number s·batch_size + k of an endless stream: one permutation of all blocks after another,
    each of them seeded by (seed, epoch).
    """

    def __init__(self, blocks: BlockSource, batch_size: int, seed: int) -> None:
        if len(blocks) == 0:
            raise ValueError("no block to train on")
        self._blocks = blocks
        self.batch_size = batch_size
        self.seed = seed
        self._last_epoch: tuple[int, NDArray[np.int64]] | None = None  # saves work, changes nothing

    def blocks_of(self, step: int) -> list[int]:
        """The indices of the blocks that step `step`, counted from 0, trains on."""
        first = step * self.batch_size
        return [self._block_at(position) for position in range(first, first + self.batch_size)]

    def micro_batches(self, step: int, micro_batch_size: int) -> list[Batch]:
        """The batch of step `step` in parts of at most `micro_batch_size` sequences, in order."""
        indices = self.blocks_of(step)
        starts = range(0, len(indices), micro_batch_size)
        return [_batch(self._blocks, indices[start : start + micro_batch_size]) for start in starts]

    def _block_at(self, position: int) -> int:
        epoch, offset = divmod(position, len(self._blocks))
        if self._last_epoch is None or self._last_epoch[0] != epoch:
            self._last_epoch = (epoch, permutation(len(self._blocks), self.seed, epoch))
        return int(self._last_epoch[1][offset])


def permutation(n: int, *seed: int) -> NDArray[np.int64]:
    """A permutation of 0 … n−1, the same for the same numbers in `seed`."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))).permutation(n)


def held_out_batches(blocks: BlockSource, batch_size: int, max_tokens: int) -> Iterator[Batch]:
    """The held-out blocks in order, each once; the last batch may be smaller.

    Where they have more than `max_tokens` targets, as many whole blocks as fit are taken (at least one): a fixed
    random choice, the same at every evaluation, since the first documents of a source are seldom like the others.
    """
    chosen = _choose(blocks, max_tokens)
    for start in range(0, len(chosen), batch_size):
        yield _batch(blocks, chosen[start : start + batch_size])


def _choose(blocks: BlockSource, max_tokens: int) -> list[int]:
    n_blocks = len(blocks)
    if n_blocks == 0:
        return []
    last = blocks[n_blocks - 1]
    n_targets = count_tokens(n_blocks, last) - 1
    if n_targets <= max_tokens:
        return list(range(n_blocks))
    n_chosen = min(n_blocks, max(1, max_tokens // (len(last) - 1)))
    return sorted(permutation(n_blocks, _CAPPED_SEED)[:n_chosen].tolist())


def _batch(blocks: BlockSource, indices: Sequence[int]) -> Batch:
    rows = torch.from_numpy(np.stack([blocks[index] for index in indices]).astype(np.int64))  # [B, T + 1]
    tokens, targets = rows[:, :-1], rows[:, 1:]
    return Batch(
        tokens=tokens.masked_fill(tokens == PAD, 0).contiguous(),
        targets=targets.masked_fill(targets == PAD, IGNORE).contiguous(),
    )
