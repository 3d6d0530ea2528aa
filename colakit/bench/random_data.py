"""Batches of random tokens, which the trainer's own loader reads and a thread makes ready."""

import sys

import numpy as np
from numpy.typing import NDArray

from colakit.config.schema import RunConfig
from colakit.data.ahead import ahead
from colakit.data.loader import Batch, TrainLoader
from colakit.data.mixture import Schedule
from colakit.parallel.world import ALONE, World

_DOCUMENT_TOKENS = 1000
"""Between the beginnings of two documents, on average, where they do not see each other: as in FineWeb-Edu."""
_BLOCKS = 64
_AHEAD = 2


def random_batches(config: RunConfig, world: World = ALONE) -> ahead[list[Batch]]:
    """The micro-batches of one step after another, without end, as far as they are this process's."""
    train = config.train
    loader = TrainLoader(
        {"random": RandomBlocks(config)},
        Schedule(["random"], [{"random": 1.0}], [], train.seed),
        train.batch_size,
        train.seed,
        isolate_eot=0 if config.data.isolates_documents else None,
        global_rank=world.rank,
        world_size=world.size,
    )
    return ahead(loader.steps(0, sys.maxsize, train.micro_batch_size_of(world.size)), depth=_AHEAD)


class RandomBlocks:
    """Blocks of random tokens."""

    def __init__(self, config: RunConfig) -> None:
        model = config.model
        generator = np.random.default_rng(config.train.seed)
        self._blocks = generator.integers(model.vocab_size, size=(_BLOCKS, model.seq_len + 1), dtype=np.int32)
        if config.data.isolates_documents:
            ends = generator.random(self._blocks.shape) < 1.0 / _DOCUMENT_TOKENS
            self._blocks = np.where(ends, 0, np.maximum(self._blocks, 1))

    @property
    def n_targets(self) -> int:
        """All but the first of each."""
        blocks, width = self._blocks.shape
        return int(blocks * (width - 1))

    def __len__(self) -> int:
        return _BLOCKS

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        """Block `index`, [T + 1]."""
        block: NDArray[np.int32] = self._blocks[index]
        return block
