"""Which source each block of a run comes from: a pure function of its number, so that no position is ever lost.

A stage is divided into windows of 1,000 blocks. In each, source j of weight w_j has 1000·w_j blocks, rounded down or
up; which of them are rounded up changes from window to window (systematic sampling with an irrational step), so that
over many windows the rests come out too. Inside a window the blocks of a source are spread evenly, each moved at random
within its share of the window, so that every stretch has nearly the proportions of the whole.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

WINDOW = 1000
_STEP = 0.6180339887498949
"""The golden ratio's fractional part: its multiples fill [0, 1) evenly."""


class Schedule:
    """The sources of an endless sequence of blocks: `stages` of weights by source, all but the last with an end."""

    def __init__(
        self, names: Sequence[str], stages: Sequence[Mapping[str, float]], ends: Sequence[int], seed: int
    ) -> None:
        """`ends[i]` is the number of the block before which stage i ends, counted from the run's first block."""
        self.names = tuple(names)
        self._quotas = [_quotas([stage.get(name, 0.0) for name in names]) for stage in stages]
        self._begins = (0, *ends)
        self._seed = seed
        self._held: tuple[tuple[int, int], NDArray[np.int64], NDArray[np.int64]] | None = None

    def stage_of(self, block: int) -> int:
        """The number of the stage that block is in."""
        # Where a stage is empty, the next one begins at the same block.
        return max(i for i, begin in enumerate(self._begins) if begin <= block or i == 0)

    def at(self, block: int) -> tuple[int, int]:
        """The source of that block, an index into `names`, and how many of that source's blocks came before."""
        stage = self.stage_of(block)
        window, offset = divmod(block - self._begins[stage], WINDOW)
        if self._held is None or self._held[0] != (stage, window):  # saves work, changes nothing
            order = self._order(stage, window)
            before = self.counts(self._begins[stage] + window * WINDOW)
            numbers = np.empty(WINDOW, dtype=np.int64)
            for source in range(len(self.names)):
                mine = order == source
                numbers[mine] = before[source] + np.arange(mine.sum())
            self._held = ((stage, window), order, numbers)
        return int(self._held[1][offset]), int(self._held[2][offset])

    def counts(self, block: int) -> NDArray[np.int64]:
        """How many blocks of each source come before that block."""
        total = np.zeros(len(self.names), dtype=np.int64)
        for stage, begin in enumerate(self._begins[: self.stage_of(block) + 1]):
            later = self._begins[stage + 1] if stage + 1 < len(self._begins) else block
            windows, rest = divmod(max(0, min(block, later) - begin), WINDOW)
            total += self._window_counts(stage, np.arange(windows)).sum(axis=0)
            if rest:
                total += np.bincount(self._order(stage, windows)[:rest], minlength=len(self.names))
        return total

    def _window_counts(self, stage: int, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """[W] numbers of windows → [W, sources] blocks of each source in them."""
        whole, rests = self._quotas[stage]
        bounds = np.concatenate([[0.0], np.cumsum(rests)])
        bounds[-1] = round(bounds[-1])  # the quotas of a window sum to 1,000
        phase = (windows * _STEP) % 1.0
        steps = np.floor(bounds + phase[:, None]).astype(np.int64)
        return np.asarray(whole + np.diff(steps, axis=1))

    def _order(self, stage: int, window: int) -> NDArray[np.int64]:
        """[1000] the source of each block of a window."""
        counts = self._window_counts(stage, np.array([window]))[0]
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self._seed, stage, window))))
        sources = np.repeat(np.arange(len(counts)), counts)
        ranks = np.concatenate([np.arange(n) for n in counts])
        return sources[np.argsort((ranks + random.random(WINDOW)) / counts[sources], kind="stable")]


def _quotas(weights: Sequence[float]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Blocks of each source in a window: the whole ones, and what is left."""
    # Rounded, so that 0.29 · 1000 is 290.
    exact = np.round(WINDOW * np.array(weights) / sum(weights), 9)
    whole = np.floor(exact)
    return whole.astype(np.int64), exact - whole
