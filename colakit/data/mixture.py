"""Which source each block of a run comes from: a pure function of its number, so that no position is ever lost.

A stage is divided into windows of 1,000 blocks. In each, source j of weight w_j has 1000·w_j blocks, rounded down or
up; which of them are rounded up changes from window to window (systematic sampling, a golden ratio further each time),
so that over many windows the rests come out too. Inside a window the blocks of a source are spread evenly, each moved
at random within its share of the window, so that every stretch has nearly the proportions of the whole.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

WINDOW = 1000
_UNIT = 10**9
"""Shares are counted in billionths of a block: whole numbers, so that no rounding of floats makes or loses a block."""

_STEP = 618_033_989
"""The golden ratio's fractional part in those: its multiples fill a block evenly."""


class Schedule:
    """The sources of an endless sequence of blocks: `stages` of weights by source, all but the last with an end."""

    def __init__(
        self, names: Sequence[str], stages: Sequence[Mapping[str, float]], ends: Sequence[int], seed: int
    ) -> None:
        """`ends[i]` is the number of the block before which stage i ends, counted from the run's first block."""
        self.names = tuple(names)
        self._bounds = [_bounds([stage.get(name, 0.0) for name in names]) for stage in stages]
        self._begins = (0, *ends)
        self._seed = seed
        self._held: tuple[tuple[int, int], NDArray[np.int64], NDArray[np.int64]] | None = None

    def stage_of(self, block: int) -> int:
        """The number of the stage that block is in."""
        # Where a stage is empty, the next one begins at the same block.
        return max(i for i, begin in enumerate(self._begins) if begin <= block or i == 0)

    def shares(self, stage: int) -> dict[str, float]:
        """What share of that stage's blocks each of its sources has."""
        shares = np.diff(self._bounds[stage]) / (WINDOW * _UNIT)
        return {name: float(share) for name, share in zip(self.names, shares, strict=True) if share > 0.0}

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
        phase = windows * _STEP % _UNIT
        return np.diff((self._bounds[stage] + phase[:, None]) // _UNIT, axis=1)

    def _order(self, stage: int, window: int) -> NDArray[np.int64]:
        """[1000] the source of each block of a window."""
        counts = self._window_counts(stage, np.array([window]))[0]
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self._seed, stage, window))))
        sources = np.repeat(np.arange(len(counts)), counts)
        ranks = np.concatenate([np.arange(n) for n in counts])
        return sources[np.argsort((ranks + random.random(WINDOW)) / counts[sources], kind="stable")]


def _bounds(weights: Sequence[float]) -> NDArray[np.int64]:
    """[sources + 1] where each source's share of a window begins and ends, in billionths of a block."""
    # By the largest first: the sum of two large floats may be infinite.
    shares = np.cumsum(np.array([0.0, *weights]) / max(weights))
    return np.asarray(np.round(WINDOW * _UNIT * (shares / shares[-1])), dtype=np.int64)
