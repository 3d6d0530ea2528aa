"""Contestants measured beside each other: in turns, within a budget of time, and never more than memory holds.

A slow moment of the machine meets everyone whose turns are interleaved: those of one batch size, as far as they fit
into memory together.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby

import torch

from colakit.analysis.flops import step_flops
from colakit.analysis.memory import memory_ledger
from colakit.bench.contestant import Contestant
from colakit.bench.course import RETAKING_STEPS, WARMUP_STEPS, Figures
from colakit.bench.worker import Lost, Worker, started
from colakit.build import Machine
from colakit.host import free_memory
from colakit.units import GIB, gib

MIN_REPEATS = 3
_MOST_REPEATS = 15
_TURN_S = 0.5
"""A turn is one step, or as many as take this long."""
_START_S = 5.0
"""What a process takes to be there."""
_COMPILE_S = 25.0
_ASSUMED_SHARE = 0.3
"""Of the measured peak, before anything has been measured."""
_PROCESS = 2 * GIB // 5
"""Bytes of a process that has not begun."""
_KEPT_EXCESS = 1.5
_SURE_EXCESS = 1.1
"""Times free memory, and the budget: the ledger and what is foreseen are that sure."""
_GRACE_S = 60.0

Watch = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """What came of a contestant."""

    contestant: Contestant
    figures: Figures | None = None
    repeats: int = 0
    not_run_s: float | None = None
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class _Ready:
    """Warmed up; a step takes about `step_s`, and a turn `turn_s`."""

    contestant: Contestant
    worker: Worker
    step_s: float
    turn_s: float


@dataclass
class Study:
    """Iterating measures everyone, in the order of their batch sizes; `repeats` turns each, or as many as fit."""

    machine: Machine
    peak_flops_per_s: float
    budget_s: float
    repeats: int | None
    watch: Watch

    def run(self, contestants: Sequence[Contestant]) -> Iterator[Measured]:
        """Yield everyone once."""
        self._deadline = time.monotonic() + self.budget_s
        self._seen_flops_per_s: list[float] = []
        by_size = sorted(contestants, key=_batch_size)
        groups = [group for _, size in groupby(by_size, _batch_size) for group in self._that_fit_together(list(size))]
        for i, group in enumerate(groups):
            yield from self._run_group(group, n_groups_left=len(groups) - i)

    def _that_fit_together(self, contestants: list[Contestant]) -> Iterator[list[Contestant]]:
        """In order; while one takes its turn, the others hold what they keep between steps at least."""
        group: list[Contestant] = []
        for contestant in contestants:
            if group and _held_together([*group, contestant]) > self._free():
                yield group
                group = []
            group.append(contestant)
        yield group

    def _run_group(self, group: list[Contestant], n_groups_left: int) -> Iterator[Measured]:
        ends = time.monotonic() + (self._deadline - time.monotonic()) / n_groups_left
        # A step's memory is kept for the next one, unless the others need it: then a turn begins with steps to get it
        # back, which are not timed.
        is_tight = len(group) > 1 and sum(_PROCESS + _kept(contestant) for contestant in group) > self._free()
        with ExitStack() as stack:
            ready: list[_Ready] = []
            for contestant in group:
                promised_s = self._turns * sum(each.turn_s for each in ready)
                if (refused := self._refusal(contestant, promised_s, is_tight=is_tight)) is not None:
                    yield refused
                    continue
                self.watch(f"{contestant.name}, batch size {contestant.config.train.batch_size}: warming up")
                worker = stack.enter_context(started(contestant, self.machine, gives_back=is_tight))
                try:
                    step_s = worker.warm_up(self._timeout_s())
                except (Lost, TimeoutError) as error:
                    yield self._lost(contestant, error)
                    continue
                if not contestant.compiled:
                    self._seen_flops_per_s.append(_flops(contestant) / step_s)
                turn_s = max(_TURN_S, step_s) + (RETAKING_STEPS * step_s if is_tight else 0.0)
                if (refused := self._too_long(contestant, self._turns * turn_s, promised_s)) is not None:
                    yield refused
                    continue
                ready.append(_Ready(contestant, worker, step_s, turn_s))
            yield from self._take_turns(ready, ends)

    def _take_turns(self, ready: list[_Ready], ends: float) -> Iterator[Measured]:
        turns = 0
        while ready and not self._is_enough(turns, sum(each.turn_s for each in ready), ends):
            turns += 1
            for each in list(ready):
                self.watch(
                    f"{each.contestant.name}, batch size {each.contestant.config.train.batch_size}: turn {turns}"
                )
                try:
                    each.worker.turn(math.ceil(_TURN_S / each.step_s), self._timeout_s())
                except (Lost, TimeoutError) as error:
                    ready.remove(each)
                    yield self._lost(each.contestant, error)
        for each in ready:
            try:
                yield Measured(each.contestant, each.worker.figures(_GRACE_S), repeats=turns)
            except (Lost, TimeoutError) as error:
                yield self._lost(each.contestant, error)

    def _is_enough(self, turns: int, round_s: float, ends: float) -> bool:
        if self.repeats is not None:
            return turns >= self.repeats
        if turns < MIN_REPEATS:
            return False
        return turns >= _MOST_REPEATS or time.monotonic() + round_s > ends

    @property
    def _turns(self) -> int:
        """That everyone has at least."""
        return self.repeats or MIN_REPEATS

    def _refusal(self, contestant: Contestant, promised_s: float, *, is_tight: bool) -> Measured | None:
        """For who would not fit into memory, or into what the turns promised to others leave of the budget."""
        total, free = _total(contestant), self._free()
        if total > _SURE_EXCESS * free:
            reason = f"takes {gib(total):.1f} GiB by the ledger, {gib(free):.1f} GiB are free: lower --batch-sizes"
            return Measured(contestant, reason=reason)
        step_s = _flops(contestant) / self._flops_per_s
        steps = WARMUP_STEPS + 1 + (1 + RETAKING_STEPS if is_tight else 1) * self._turns
        needed = _START_S + steps * step_s + (_COMPILE_S if contestant.compiled else 0.0)
        return self._too_long(contestant, needed, promised_s)

    def _too_long(self, contestant: Contestant, needed_s: float, promised_s: float) -> Measured | None:
        over_s = needed_s + promised_s - (self._deadline - time.monotonic())
        if over_s <= 0.0:
            return None
        enough_s = math.ceil(_SURE_EXCESS * (self.budget_s + over_s))
        reason = f"not run, would take {needed_s:,.0f} s: raise --budget-s to {enough_s:,}"
        return Measured(contestant, not_run_s=needed_s, reason=reason)

    @property
    def _flops_per_s(self) -> float:
        """The most that anyone has reached: a step that was disturbed says little of others."""
        return max(self._seen_flops_per_s, default=_ASSUMED_SHARE * self.peak_flops_per_s)

    def _lost(self, contestant: Contestant, error: Lost | TimeoutError) -> Measured:
        if isinstance(error, Lost):
            return Measured(contestant, reason=str(error))
        return Measured(contestant, reason=f"stopped: no end within {self.budget_s + _GRACE_S:,.0f} s")

    def _timeout_s(self) -> float:
        return max(0.0, self._deadline - time.monotonic()) + _GRACE_S

    def _free(self) -> int:
        if self.machine.device.type == "cuda":
            return torch.cuda.mem_get_info(self.machine.device)[0]
        return free_memory()


def _batch_size(contestant: Contestant) -> int:
    """Of one process: one that is alone is compared with several that have as much each."""
    return contestant.own_batch_size


def _flops(contestant: Contestant) -> int:
    return step_flops(contestant.config).hardware_flops


def _total(contestant: Contestant) -> int:
    ledger = memory_ledger(contestant.config)
    if contestant.peer == "hf-llama":  # whole logits, in float32, with their log-probabilities and gradients
        return ledger.plain_total - ledger.chunked_logits + 3 * ledger.logits
    return _on_device(contestant) * ledger.total


def _on_device(contestant: Contestant) -> int:
    """How many of its processes share a memory: a CPU's holds all, a GPU's one."""
    return contestant.nproc if contestant.config.train.device == "cpu" else 1


def _kept(contestant: Contestant) -> int:
    """What an allocator may keep, which is more than what lives at once."""
    return int(_KEPT_EXCESS * _total(contestant))


def _held_together(contestants: Sequence[Contestant]) -> int:
    fixed = [_fixed(contestant) for contestant in contestants]
    return len(fixed) * _PROCESS + sum(fixed) + max(_total(c) - f for c, f in zip(contestants, fixed, strict=True))


def _fixed(contestant: Contestant) -> int:
    ledger = memory_ledger(contestant.config)
    return _on_device(contestant) * (ledger.weights + ledger.muon_state + ledger.adamw_state)
