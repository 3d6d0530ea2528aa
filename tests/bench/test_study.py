"""Who takes a turn when, within which budget, and what is said of those who do not. On a clock of our own."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest

from colakit.analysis.memory import memory_ledger
from colakit.bench import study as studying
from colakit.bench.contestant import Contestant
from colakit.bench.course import Figures
from colakit.bench.study import MIN_REPEATS, Measured, Study
from colakit.bench.worker import OUT_OF_MEMORY, Lost
from colakit.build import Machine
from tests.bench.tiny import CPU, contestant, figures

GIB = 2**30


def never(_: Contestant) -> BaseException | None:
    return None


@dataclass
class Hall:
    """Where everyone waits: a step takes `step_s`, a process 2 s to start; who warms up or turns is written down."""

    step_s: Callable[[Contestant], float] = lambda _: 1.0
    failing: Callable[[Contestant], BaseException | None] = never
    failing_turn: int = 0
    now: float = 0.0
    log: list[str] = field(default_factory=list)
    alive: set[int] = field(default_factory=set)
    most_alive: int = 0
    giving_back: list[bool] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch, free_gib: float = 64.0) -> "Hall":
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr(studying, "started", self.started)
        monkeypatch.setattr(studying, "free_memory", lambda: int(free_gib * GIB))
        return self

    @contextmanager
    def started(self, of: Contestant, machine: Machine, *, gives_back: bool) -> Iterator["Seat"]:
        self.giving_back.append(gives_back)
        seat = Seat(self, of, gives_back)
        self.now += 2.0
        self.alive.add(id(seat))
        self.most_alive = max(self.most_alive, len(self.alive))
        yield seat
        self.alive.remove(id(seat))


@dataclass
class Seat:
    hall: Hall
    of: Contestant
    gives_back: bool
    times: list[float] = field(default_factory=list)
    turns: int = 0

    def warm_up(self, timeout_s: float) -> float:
        self.hall.log.append(f"warm {self.of.name} {self.of.config.train.batch_size}")
        if self.hall.failing_turn == 0 and (error := self.hall.failing(self.of)):
            raise error
        self.hall.now += 3 * self.hall.step_s(self.of)
        return self.hall.step_s(self.of)

    def turn(self, n_steps: int, timeout_s: float) -> float:
        self.turns += 1
        self.hall.now += 2 * self.hall.step_s(self.of) * self.gives_back
        self.hall.log.append(f"{self.of.name} {self.of.config.train.batch_size}")
        if self.turns == self.hall.failing_turn and (error := self.hall.failing(self.of)):
            raise error
        self.hall.now += n_steps * self.hall.step_s(self.of)
        self.times += [self.hall.step_s(self.of)] * n_steps
        return n_steps * self.hall.step_s(self.of)

    def figures(self, timeout_s: float) -> Figures:
        return figures(*self.times)


def run(
    *everyone: Contestant, budget_s: float = 1000.0, repeats: int | None = None, peak: float = 1e15
) -> list[Measured]:
    return list(Study(CPU, peak, budget_s, repeats, watch=lambda _: None).run(everyone))


def sized(preset: str, size: int) -> Contestant:
    return contestant(preset, f"train.batch_size={size}")


def test_turns_are_interleaved_at_each_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    hall = Hall().install(monkeypatch)
    found = run(sized("cola", 4), sized("original", 2), sized("cola", 2), repeats=3)
    assert hall.log == [
        *("warm original 2", "warm cola 2"),
        *("original 2", "cola 2") * 3,
        *("warm cola 4", "cola 4", "cola 4", "cola 4"),
    ]
    assert [(m.contestant.name, m.repeats) for m in found] == [("original", 3), ("cola", 3), ("cola", 3)]
    assert all(m.figures is not None and m.reason is None for m in found)
    assert hall.most_alive == 2


def test_at_least_three_turns_then_as_many_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    hall = Hall().install(monkeypatch)
    (few,) = run(sized("cola", 2), budget_s=20.0)
    assert few.repeats == MIN_REPEATS == 3 or hall.now <= 20.0
    assert hall.now <= 20.0
    hall.now = 0.0
    (some,) = run(sized("cola", 2), budget_s=18.5)
    assert some.repeats == 13, "2 s to start, 3 steps to warm up, 13 turns of 1 s"
    hall.now = 0.0
    (many,) = run(sized("cola", 2), budget_s=500.0)
    assert many.repeats == 15, "and not for ever"


def test_every_batch_size_has_its_share_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """35 s for the first, 2 to start, 3 steps of 2 to warm up, 13 turns; then 35 for steps of 4, after 2 and 12."""
    Hall(step_s=lambda c: c.config.train.batch_size).install(monkeypatch)
    found = run(sized("cola", 2), sized("cola", 4), budget_s=70.5)
    assert [m.repeats for m in found] == [13, 5]


def test_short_steps_make_long_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    Hall(step_s=lambda _: 0.06).install(monkeypatch)
    (found,) = run(sized("cola", 2), repeats=3)
    assert found.figures is not None
    assert len(found.figures.times) == 3 * 9, "half a second each"


def test_what_cannot_fit_is_listed_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second takes four times the first's operations, of which the first has shown how long they take."""
    hall = Hall(step_s=lambda c: c.config.train.batch_size / 2).install(monkeypatch)
    small, large = run(sized("cola", 2), sized("cola", 64), budget_s=100.0)
    assert small.figures is not None
    assert large.figures is None
    assert large.not_run_s == pytest.approx(5.0 + (2 + 1 + 3) * 32.0, rel=0.01)
    budget_s = math.ceil(1.1 * (hall.now + large.not_run_s))
    assert large.reason == f"not run, would take {large.not_run_s:,.0f} s: raise --budget-s to {budget_s}"
    assert hall.log[-1] == "cola 2"


def test_the_turns_that_others_were_promised_are_no_longer_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 s to start and 3 to warm up, so that 95 are left; the other, of as many operations, asks 5 s and 3 + n."""
    for repeats, is_measured in ((43, True), (44, False)):
        hall = Hall().install(monkeypatch)
        everyone = run(sized("cola", 2), sized("cola-smollm2", 2), budget_s=100.01, repeats=repeats)
        first, second = sorted(everyone, key=lambda m: m.contestant.name)
        assert first.repeats == repeats
        assert (second.figures is not None) == is_measured
        assert hall.now <= 100.01
    assert second.not_run_s is not None
    assert second.not_run_s < 95.0, "what it takes itself"


def test_who_turns_out_to_be_too_slow_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak promised more; after the warm-up of 100 s a step, three turns do not fit."""
    hall = Hall(step_s=lambda c: 100.0 if c.name == "original" else 1.0).install(monkeypatch)
    found = {m.contestant.name: m for m in run(sized("cola", 2), sized("original", 2), budget_s=400.0)}
    assert found["cola"].figures is not None
    assert found["original"].not_run_s == 300.0
    assert "original 2" not in hall.log
    assert hall.now <= 400.0


def test_the_fastest_tells_what_others_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the last one, whose step may have been disturbed; and compiled steps tell nothing of others."""
    step_s = {("cola", False): 1.0, ("cola-smollm2", False): 8.0, ("cola", True): 0.01}
    hall = Hall(step_s=lambda c: step_s[c.config.preset, c.compiled]).install(monkeypatch)
    first = [sized("cola", 2), replace(sized("cola", 2), compiled=True), sized("cola-smollm2", 2)]
    *_, last = run(*first, sized("cola", 64), budget_s=115.0, repeats=1)
    assert hall.log[-1] == "cola-smollm2 2"
    assert last.not_run_s == pytest.approx(5.0 + (2 + 1 + 1) * 32.0, rel=0.2)


def test_a_slow_machine_is_foreseen_by_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    hall = Hall().install(monkeypatch)
    (found,) = run(sized("cola", 2), peak=1e3)
    assert found.not_run_s is not None
    assert found.not_run_s > 1000.0
    assert not hall.log


def test_compiling_is_counted_and_tells_nothing_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    Hall(step_s=lambda c: 0.001 if c.compiled else 1.0).install(monkeypatch)
    eager, compiled = sized("cola", 2), replace(sized("cola", 2), compiled=True)
    found = run(eager, compiled, budget_s=30.0)
    assert {m.contestant.name: m.not_run_s is None for m in found} == {"cola": True, "cola, compiled": False}


@pytest.mark.parametrize("turn", [0, 2])
def test_who_is_lost_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch, turn: int) -> None:
    def lost(c: Contestant) -> BaseException | None:
        return Lost(OUT_OF_MEMORY) if c.name == "original" else None

    Hall(failing=lost, failing_turn=turn).install(monkeypatch)
    found = {m.contestant.name: m for m in run(sized("original", 2), sized("cola", 2), repeats=4)}
    assert (found["original"].figures, found["original"].reason) == (None, OUT_OF_MEMORY)
    assert found["cola"].repeats == 4
    assert found["cola"].figures is not None


def test_who_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    Hall(failing=lambda _: TimeoutError()).install(monkeypatch)
    (found,) = run(sized("cola", 2), budget_s=30.0)
    assert found.reason == "stopped: no end within 90 s"


def test_what_the_ledger_refuses_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    hall = Hall().install(monkeypatch, free_gib=0.0001)
    (found,) = run(sized("cola", 512))
    assert found.reason is not None
    assert found.reason.endswith("GiB by the ledger, 0.0 GiB are free: lower --batch-sizes")
    assert not hall.log


def test_who_does_not_fit_beside_the_others_comes_after_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studying, "_total", lambda _: 5 * GIB)
    monkeypatch.setattr(studying, "_fixed", lambda _: 2 * GIB)
    hall = Hall().install(monkeypatch, free_gib=9.1)  # 2 and 5 and twice 0.4, not 2 and 2 and 5 and thrice 0.4
    run(*(sized(preset, 2) for preset in ("original", "cola", "cola-fan")), repeats=1)
    assert hall.log == ["warm original 2", "warm cola 2", "original 2", "cola 2", "warm cola-fan 2", "cola-fan 2"]
    assert hall.most_alive == 2


def test_where_memory_is_short_everyone_gives_back_what_a_step_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes two steps that are not timed to get it back, which count in the budget."""
    monkeypatch.setattr(studying, "_total", lambda _: 5 * GIB)
    monkeypatch.setattr(studying, "_fixed", lambda _: GIB)
    two, alone = [sized(preset, 2) for preset in ("original", "cola")], sized("cola", 4)
    hall = Hall().install(monkeypatch, free_gib=15.9)  # thrice 5 and twice 0.4
    roomy = run(*two, alone, budget_s=1e4, repeats=1)
    assert hall.giving_back == [False] * 3
    hall.install(monkeypatch, free_gib=15.7).giving_back.clear()
    tight = run(*two, alone, budget_s=1e4, repeats=1)
    assert hall.giving_back == [True, True, False]
    assert all(m.figures is not None for m in (*roomy, *tight))
    for free_gib, turns in ((15.9, 11), (15.7, 3)):
        hall.now = 0.0
        hall.install(monkeypatch, free_gib=free_gib)
        (first, second) = run(*two, budget_s=32.5)
        assert (first.repeats, second.repeats) == (turns, turns), "2 s to start, 3 steps to warm up, for each"


def test_steps_that_are_not_timed_count_in_what_a_contestant_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studying, "_total", lambda _: 5 * GIB)
    monkeypatch.setattr(studying, "_fixed", lambda _: GIB)
    two = [sized(preset, 2) for preset in ("original", "cola")]
    needed = []
    for free_gib in (15.9, 15.7):
        Hall().install(monkeypatch, free_gib=free_gib)
        needed.append([m.not_run_s or 0.0 for m in run(*two, peak=1e3, repeats=4)])
    for roomy, tight in zip(*needed, strict=True):
        assert tight - 5.0 == pytest.approx((roomy - 5.0) * (3 + 3 * 4) / (3 + 4))


def test_who_is_lost_at_the_end_does_not_take_the_others_along(monkeypatch: pytest.MonkeyPatch) -> None:
    Hall().install(monkeypatch)
    honest = Seat.figures

    def figures_(self: Seat, timeout_s: float) -> Figures:
        if self.of.name == "original":
            raise Lost(OUT_OF_MEMORY)
        return honest(self, timeout_s)

    monkeypatch.setattr(Seat, "figures", figures_)
    found = {m.contestant.name: m for m in run(sized("original", 2), sized("cola", 2), repeats=1)}
    assert (found["original"].figures, found["original"].reason) == (None, OUT_OF_MEMORY)
    assert found["cola"].figures is not None


def test_a_llama_is_known_to_hold_its_logits_whole() -> None:
    of = sized("original", 2)
    ledger = memory_ledger(of.config)
    more = studying._total(replace(of, peer="hf-llama")) - studying._total(of)
    assert more == 3 * ledger.logits - ledger.chunked_logits > 0
