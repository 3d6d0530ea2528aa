"""The largest micro-batch that trains within a limit of memory: predicted, tried, and the winner tried for longer.

The ledger counts what lives. A process holds more than that, by what its allocator keeps and its kernels need, and on a
CPU that grows for some steps. How much more is seen in a first try of a third of what the ledger promises, halved until
it fits, with as many steps as the winner has to make; then the prediction is made.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from colakit.analysis.flops import step_flops
from colakit.analysis.memory import memory_ledger
from colakit.bench.probe import Room, try_batch, with_micro_batch
from colakit.build import Machine
from colakit.config.schema import RunConfig
from colakit.errors import RunError
from colakit.records.bench import ProbeRecord
from colakit.units import GIB, gib

MOST_PROBES = 8
_MOST_IN_SEARCH = 4
MARGIN_FRAC = 0.05
"""Of the limit, which stays free."""
STEPS = {"cpu": (2, 10), "cuda": (4, 50)}
"""Of a try, and of the winner's."""
_FIRST_SHARE = 3
_MOST_FIRST = 3
_FIRST_STEP_FRAC = 0.05
_RESOLUTION_FRAC = 0.02
_WINNERS = (1.0, 0.95, 0.9, 0.8)
"""Shares of the best size that are tried for longer, until one holds."""
_MAX_TOKENS = 2**32
"""Of a batch: beyond any."""
_ASSUMED_SHARE = 0.3
"""Of the peak of a product, before anything has been measured."""
_START_S = 10.0
"""What a process takes to be there."""
_COMPILE_S = 60.0
_EVALUATION = 1 / 3
"""Of a step's time: the forward pass."""
_SURE_EXCESS = 1.5
"""Times what is allowed: the ledger is that sure, attention kernels that it does not know included."""
_GRACE_S = 20.0
"""Which a try that was expected to end within the budget may take beyond it."""

Watch = Callable[[str], None]


def search(start: int, fits: Callable[[int], bool], *, most: int, highest: int, most_without: int = 0) -> int:
    """The largest size from 1 to `highest` that `fits`, 0 where none does: to 2 %, as far as `most` tries tell.

    While none fits, `most_without` where that is more. From `start` up in steps that double, or two of them down,
    until one size fits and one does not; then by halves. Sizes below one that fits are taken to fit.
    """
    low, high = 0, highest + 1
    size, step = min(start, highest), max(1, round(_FIRST_STEP_FRAC * start))
    for n in itertools.count(1):
        if fits(size):
            low = size
        else:
            high = size
        if high - low <= max(1.0, _RESOLUTION_FRAC * low) or n >= (most if low else max(most, most_without)):
            return low
        if high > highest:
            size = min(low + step, highest)
            step *= 2
        elif n <= 2 and not low:
            size = max(1, high - step)
            step *= 2
        else:
            size = (low + high) // 2
    raise AssertionError


@dataclass(frozen=True)
class Found:
    """What a search came to: the size, None where there is none, and what the winner held."""

    by_ledger: int
    predicted: int
    size: int | None = None
    winner: ProbeRecord | None = None
    not_run_s: float | None = None
    reason: str | None = None


class EndedError(Exception):
    """The budget ended the search: how, in words."""


@dataclass
class Search:
    """For one configuration: `run` it once. `limit` is in bytes, for the whole process on a CPU."""

    config: RunConfig
    machine: Machine
    room: Room
    limit: int
    ends: float
    """When the budget does, by time.monotonic()."""
    watch: Watch
    probes: list[ProbeRecord] = field(default_factory=list)
    """All tries, in order."""
    compiled: bool = False
    """Whether the blocks were, in a try that fits."""

    def __post_init__(self) -> None:
        self._allowed = int((1.0 - MARGIN_FRAC) * self.limit)
        self._highest = _MAX_TOKENS // self.config.model.seq_len
        self._steps, self._winner_steps = STEPS[self.machine.device.type]
        self._flops_per_s = _ASSUMED_SHARE * self.room.peak_flops_per_s
        self._excess = 1.0

    def run(self) -> Found:
        """Predict, search, and try the winner for longer."""
        predicted = by_ledger = self._predict()
        if self._needed(1) > _SURE_EXCESS * self._allowed:
            takes, allowed = gib(self._needed(1)), gib(self._allowed)
            reason = (
                f"one sequence takes {takes:.2f} GiB by the ledger, {allowed:.2f} GiB are allowed: raise --memory-gib"
            )
            return Found(0, 0, reason=reason)
        start = max(1, by_ledger // _FIRST_SHARE)
        first_s = self._seconds(start, self._winner_steps)
        if time.monotonic() + first_s > self.ends:
            reason = f"not run, would take {first_s:,.0f} s: raise --budget-s"
            return Found(by_ledger, predicted, not_run_s=first_s, reason=reason)
        ended: str | None = None
        try:
            start = predicted = self._first(start)
            left = MOST_PROBES - 1 - len(self.probes)
            search(start, self._fits, most=min(_MOST_IN_SEARCH, left), most_without=left, highest=self._highest)
        except (EndedError, RunError) as error:
            ended = str(error)
        try:
            winner = self._winner()
        except (EndedError, RunError) as error:
            ended, winner = str(error), self._largest()
        if winner is None:
            return Found(by_ledger, predicted, reason=ended or f"none trains: {self.probes[-1].reason}")
        return Found(by_ledger, predicted, winner.batch_size, winner, reason=ended)

    def _first(self, size: int) -> int:
        """Try `size`, or half as much until one fits; what is predicted from that, or the last one where none did."""
        failed: int | None = None
        while not self._try(size, self._winner_steps).fits:
            if size == 1 or len(self.probes) == _MOST_FIRST:
                return size
            failed, size = size, size // 2
        self._correct(self.probes[-1])
        predicted = max(size, self._predict())
        return predicted if failed is None else min(predicted, failed - 1)

    def is_bounded(self, found: Found) -> bool:
        """Whether a size not much larger than what was found does not fit."""
        failed = (probe.batch_size for probe in self.probes if not probe.fits)
        return found.size is not None and any(size <= found.size / min(_WINNERS) + 1 for size in failed)

    def _winner(self) -> ProbeRecord | None:
        """The largest of the sizes below the best that is known to hold for longer, or does so now."""
        best = self._largest()
        if best is None:
            return None
        held = {probe.batch_size for probe in self.probes if probe.fits and probe.steps >= self._winner_steps}
        for size in sorted(held | {int(share * best.batch_size) for share in _WINNERS} - {0}, reverse=True):
            seen = self._tried(size, self._winner_steps)
            if seen is None and len(self.probes) < MOST_PROBES:
                seen = self._try(size, self._winner_steps)
            if seen is not None and seen.fits:
                return seen
        return None

    def _largest(self) -> ProbeRecord | None:
        """Of the tries that fit, where none as large has failed since."""
        failed = min((probe.batch_size for probe in self.probes if not probe.fits), default=self._highest + 1)
        fitting = [probe for probe in self.probes if probe.fits and probe.batch_size < failed]
        return max(fitting, key=lambda probe: probe.batch_size, default=None)

    def _tried(self, size: int, steps: int) -> ProbeRecord | None:
        """The try of `size` that made at least so many."""
        return next((probe for probe in self.probes if probe.batch_size == size and probe.steps >= steps), None)

    def _fits(self, size: int) -> bool:
        """Whether `size` does, by a try unless there was one. Raises EndedError."""
        if seen := self._tried(size, self._steps):
            return seen.fits
        # Where it fits it may be the winner, which is tried again.
        needed_s = self._seconds(size, self._steps) + self._seconds(size, self._winner_steps)
        if time.monotonic() + needed_s > self.ends:
            raise EndedError(f"--budget-s ended the search: raise it by {needed_s:,.0f} s for another try")
        return self._try(size, self._steps).fits

    def _try(self, size: int, steps: int) -> ProbeRecord:
        self.watch(f"{self.config.preset}: {size} sequences, {steps} steps")
        config = with_micro_batch(self.config, size)
        most_s = max(0.0, self.ends - time.monotonic()) + _GRACE_S
        try:
            outcome = try_batch(config, self.machine, steps=steps, limit=self._allowed, timeout_s=most_s)
        except TimeoutError:
            told = f"--budget-s ended the try of {size} sequences, {steps} steps, after {most_s:,.0f} s: raise it"
            raise EndedError(told) from None
        self.compiled = self.compiled or outcome.compiled
        if outcome.step_s:
            self._flops_per_s = step_flops(config).hardware_flops / outcome.step_s
        peak = gib(outcome.peak) if outcome.peak is not None else None
        self.probes.append(ProbeRecord(size, steps, outcome.fits, peak, outcome.seconds, outcome.reason))
        return self.probes[-1]

    def _seconds(self, size: int, steps: int) -> float:
        step_s = step_flops(with_micro_batch(self.config, size)).hardware_flops / self._flops_per_s
        return _START_S + (_COMPILE_S if self.machine.compiles else 0.0) + (steps + _EVALUATION) * step_s

    def _predict(self) -> int:
        """The largest size for which there is room, by the ledger and what has been seen; 0 where there is none.

        At the configuration's own batch size less is needed than just below it: nothing waits for a second micro-batch.
        """
        low, high = 0, self._highest + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._needed(middle) <= self._allowed else (low, middle)
        whole = self.config.train.batch_size
        return max(low, whole if self._needed(whole) <= self._allowed else 0)

    def _needed(self, size: int) -> int:
        fixed, growing = self._counted(size)
        return self.room.taken + fixed + int(self._excess * growing)

    def _correct(self, probe: ProbeRecord) -> None:
        """By what was held for each byte that the ledger counts of what grows with the batch."""
        fixed, growing = self._counted(probe.batch_size)
        if probe.peak_gib is not None:
            self._excess = max(0.1, (probe.peak_gib * GIB - self.room.taken - fixed) / growing)

    def _counted(self, size: int) -> tuple[int, int]:
        """Bytes by the ledger: what is there throughout, and what grows with the batch."""
        config = with_micro_batch(self.config, size)
        ledger = memory_ledger(config)
        state = ledger.weights + ledger.muon_state + ledger.adamw_state
        growing = ledger.total - state - ledger.gradients
        # In a step of one micro-batch the gradients come as activations go; in a second one they are there before.
        is_alone = config.train.batch_size == size
        return state + (max(0, ledger.gradients - growing) if is_alone else ledger.gradients), growing


def largest_divisor(n: int, most: int) -> int:
    """The largest number up to `most`, which is at least 1, that divides `n`."""
    return max(d for d in range(1, min(n, most) + 1) if n % d == 0)
