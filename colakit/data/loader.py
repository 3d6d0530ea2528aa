"""Batches as functions of a position: no iterator state, so resuming at a step is exact and costs nothing.

Shapes: B sequences, T tokens each. A block holds T + 1 tokens; see `packing`.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from colakit.data.mixture import Schedule
from colakit.data.packing import PAD, Blocks
from colakit.loss import IGNORE

_CAPPED_SEED = 0


@dataclass(frozen=True)
class Batch:
    """Tokens [B, T] and their targets [B, T], both int64. Behind the end of a text: token 0, target IGNORE."""

    tokens: torch.Tensor
    targets: torch.Tensor
    document_starts: torch.Tensor | None = None
    """Where a document begins, [B, T] bool, for a model that keeps documents apart; None: a row is read as one."""


class BlockId(NamedTuple):
    """A block of one source."""

    source: str
    number: int


class Order:
    """The order of one source's blocks: one permutation of them all after another, each seeded by its epoch."""

    def __init__(self, blocks: Blocks, *seed: int) -> None:
        """Raises ValueError where there is no block."""
        if len(blocks) == 0:
            raise ValueError("no block to train on")
        self.blocks = blocks
        self._seed = seed
        self._last_epoch: tuple[int, NDArray[np.int64]] | None = None  # saves work, changes nothing

    def index(self, number: int) -> int:
        """Which block comes at place `number` of the endless sequence."""
        epoch, offset = divmod(number, len(self.blocks))
        if self._last_epoch is None or self._last_epoch[0] != epoch:
            first, *others = self._seed
            self._last_epoch = (epoch, permutation(len(self.blocks), first, epoch, *others))
        return int(self._last_epoch[1][offset])


class TrainLoader:
    """The training batches of every step: a function of the seed, the schedule and the numbers of blocks alone.

    Sequence k of step s is block number s·batch_size + k of the schedule's endless sequence. Of `world_size` processes
    each takes its own stretch of every batch, so that the batches are the same for any number of them.
    """

    def __init__(
        self,
        sources: Mapping[str, Blocks],
        schedule: Schedule,
        batch_size: int,
        seed: int,
        *,
        isolate_eot: int | None = None,
        global_rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`isolate_eot`: the end-of-text id, where documents shall not see each other.

        Raises ValueError for a source without blocks, and for a batch that does not divide by `world_size`.
        """
        if batch_size % world_size:
            raise ValueError(f"a batch of {batch_size} does not divide by {world_size} processes")
        names = schedule.names
        # A source among several has an order of its own name, whatever the others are; a single one, of the seed.
        seeds = {name: () if len(names) == 1 else (zlib.crc32(name.encode()),) for name in names}
        self._orders = {name: Order(sources[name], seed, *seeds[name]) for name in names}
        self._schedule = schedule
        self._isolate_eot = isolate_eot
        self._first = global_rank * (batch_size // world_size)
        self._n_own = batch_size // world_size
        self.batch_size = batch_size

    def blocks_of(self, step: int) -> list[BlockId]:
        """The blocks that this process trains on in step `step`, counted from 0."""
        first = step * self.batch_size + self._first
        places = (self._schedule.at(block) for block in range(first, first + self._n_own))
        named = ((self._schedule.names[source], number) for source, number in places)
        return [BlockId(name, self._orders[name].index(number)) for name, number in named]

    def micro_batches(self, step: int, micro_batch_size: int) -> list[Batch]:
        """The batch of step `step` in parts of at most `micro_batch_size` sequences, in order."""
        rows = [self._orders[name].blocks[index] for name, index in self.blocks_of(step)]
        starts = range(0, len(rows), micro_batch_size)
        return [make_batch(rows[i : i + micro_batch_size], self._isolate_eot) for i in starts]

    def steps(self, first: int, stop: int, micro_batch_size: int) -> Iterator[list[Batch]]:
        """The micro-batches of steps `first` … `stop` − 1."""
        return (self.micro_batches(step, micro_batch_size) for step in range(first, stop))

    def epochs(self, step: int) -> dict[str, float]:
        """How often each source has been read through before step `step`."""
        counts = self._schedule.counts(step * self.batch_size)
        named = zip(self._schedule.names, counts, strict=True)
        return {name: int(count) / len(self._orders[name].blocks) for name, count in named}


def permutation(n: int, *seed: int) -> NDArray[np.int64]:
    """A permutation of 0 … n−1, the same for the same numbers in `seed`."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))).permutation(n)


def held_out_batches(
    blocks: Blocks, batch_size: int, max_tokens: int, *, isolate_eot: int | None = None
) -> Iterator[Batch]:
    """The held-out blocks in order, each once; the last batch may be smaller.

    Where they have more than `max_tokens` targets, as many whole blocks as fit are taken (at least one): a fixed
    random choice, the same at every evaluation, since the first documents of a source are seldom like the others.
    """
    chosen = choose(blocks, max_tokens)
    for start in range(0, len(chosen), batch_size):
        yield make_batch([blocks[index] for index in chosen[start : start + batch_size]], isolate_eot)


def choose(blocks: Blocks, max_tokens: int) -> list[int]:
    """The blocks that `held_out_batches` goes through, in order."""
    if blocks.n_targets <= max_tokens:
        return list(range(len(blocks)))
    chosen: list[int] = []
    n_targets = 0
    for index in permutation(len(blocks), _CAPPED_SEED).tolist():
        n_targets += int((blocks[index][1:] != PAD).sum())
        if chosen and n_targets > max_tokens:
            break
        chosen.append(index)
    return sorted(chosen)


def make_batch(blocks: Sequence[NDArray[np.int32]], isolate_eot: int | None = None) -> Batch:
    """A batch of blocks, each [T + 1]; with `isolate_eot`, documents begin at that token and see no other."""
    rows = torch.from_numpy(np.stack(blocks).astype(np.int64))  # [B, T + 1]
    tokens, targets = rows[:, :-1], rows[:, 1:]
    return Batch(
        tokens=tokens.masked_fill(tokens == PAD, 0).contiguous(),
        targets=targets.masked_fill(targets == PAD, IGNORE).contiguous(),
        document_starts=None if isolate_eot is None else tokens == isolate_eot,
    )
