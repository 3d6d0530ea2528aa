"""The largest batch: the search itself, its prediction, time and winner on tries that are played."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colakit.analysis.memory import memory_ledger
from colakit.bench import max_batch as module
from colakit.bench import run as running
from colakit.bench.max_batch import MARGIN_FRAC, MOST_PROBES, Search, largest_divisor, search
from colakit.bench.probe import Outcome, Room, with_micro_batch
from colakit.bench.report import max_batch_record
from colakit.bench.run import run_max_batch
from colakit.build import Machine
from colakit.config.load import resolve
from colakit.config.schema import RunConfig
from colakit.errors import ConfigError, RunError
from tests.bench.tiny import CPU, tiny_config

GIB = 2**30
CONFIG = resolve("cola-smollm2", sets=["train.device=cpu", "train.dtype=float32", "train.batch_size=16"]).config


# the search


@given(st.integers(0, 3000), st.integers(1, 4000), st.integers(1, 3000))
def test_a_search_ends_at_the_edge_whatever_it_starts_from(edge: int, start: int, highest: int) -> None:
    """Below 100 to the one, beyond to 2 %."""
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= edge

    found, whole = search(start, fits, most=100, highest=highest), min(edge, highest)
    assert found <= whole
    assert found == whole if whole < 100 else found > whole / 1.021
    assert all(1 <= size <= highest for size in tried)
    assert len(set(tried)) == len(tried)


@given(st.integers(1, 10_000), st.floats(0.9, 1.1))
def test_from_a_good_prediction_three_tries_come_close_to_the_edge(edge: int, error: float) -> None:
    tried: list[int] = []
    found = search(max(1, round(error * edge)), lambda n: (tried.append(n), n <= edge)[1], most=3, highest=10**6)
    assert 0.88 * edge - 1 < found <= edge or not found
    assert len(tried) <= 3


def test_large_sizes_are_found_to_2_per_cent() -> None:
    tried: list[int] = []
    assert search(5000, lambda n: (tried.append(n), n <= 5100)[1], most=99, highest=10**6) == 5062
    assert tried == [5000, 5250, 5125, 5062]


def test_steps_double_and_then_halve() -> None:
    tried: list[int] = []
    search(100, lambda n: (tried.append(n), n <= 128)[1], most=7, highest=10**6)
    assert tried == [100, 105, 115, 135, 125, 130, 127]
    tried.clear()
    search(100, lambda n: (tried.append(n), n <= 80)[1], most=6, highest=10**6)
    assert tried == [100, 95, 85, 42, 63, 74]


def test_a_divisor() -> None:
    assert [largest_divisor(16, n) for n in (1, 5, 8, 15, 16, 99)] == [1, 4, 8, 8, 16, 16]


# a configuration, on tries that are played


@dataclass
class Stage:
    """Where a try takes no time but that of its steps, and memory by the ledger, `excess` times what grows."""

    excess: float = 1.0
    taken: int = GIB // 4
    step_s: Callable[[RunConfig], float] = lambda c: 0.1 * c.train.batch_size
    growth: float = 1.0
    """By which longer tries hold more."""
    now: float = 0.0
    tried: list[tuple[int, int]] = field(default_factory=list)

    def try_batch(self, config: RunConfig, machine: Machine, *, steps: int, limit: int, timeout_s: float) -> Outcome:
        size = config.train.effective_micro_batch_size
        self.tried.append((size, steps))
        took = steps * self.step_s(config)
        self.now += took
        ledger = memory_ledger(config)
        state = ledger.weights + ledger.muon_state + ledger.adamw_state
        growing = ledger.total - state - ledger.gradients
        gradients = ledger.gradients if config.train.batch_size > size else max(0, ledger.gradients - growing)
        peak = self.taken + state + gradients + int(self.excess * growing * (self.growth if steps > 2 else 1.0))
        if peak > limit:
            return Outcome(False, None, took, reason="out of memory")
        return Outcome(True, peak, took, self.step_s(config))


def run(
    monkeypatch: pytest.MonkeyPatch,
    stage: Stage,
    *,
    config: RunConfig = CONFIG,
    gib: float = 12.0,
    budget_s: float = 1e6,
) -> tuple[Search, module.Found]:
    monkeypatch.setattr(module, "try_batch", stage.try_batch)
    monkeypatch.setattr("time.monotonic", lambda: stage.now)
    room = Room(stage.taken, 64 * GIB, peak_flops_per_s=1e12)
    one = Search(config, CPU, room, int(gib * GIB), budget_s, lambda _: None)
    return one, one.run()


@pytest.mark.parametrize("excess", [0.7, 1.0, 1.2, 2.1])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_first_try_corrects_the_ledger(monkeypatch: pytest.MonkeyPatch, excess: float, batch_size: int) -> None:
    config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"batch_size": batch_size})})
    stage = Stage(excess)
    search, found = run(monkeypatch, stage, config=config)
    assert found.size is not None
    assert found.size == found.predicted
    limit = int((1.0 - MARGIN_FRAC) * 12 * GIB)

    def fits(size: int) -> bool:
        return stage.try_batch(with_micro_batch(config, size), CPU, steps=2, limit=limit, timeout_s=0.0).fits

    assert fits(found.size)
    assert not fits(found.size + 1)
    assert search.probes[0].batch_size == max(1, found.by_ledger // 3)
    assert len(search.probes) <= MOST_PROBES
    assert [p.steps for p in search.probes if p.batch_size in (search.probes[0].batch_size, found.size)] == [10, 2, 10]
    assert (found.size > found.by_ledger) == (excess < 1.0)


@pytest.mark.parametrize(("excess", "firsts"), [(2.9, 1), (4.0, 2), (9.0, 3)])
def test_where_not_even_a_third_fits_less_is_tried_before_anything_is_predicted(
    monkeypatch: pytest.MonkeyPatch, excess: float, firsts: int
) -> None:
    """As heaps in pieces have it."""
    stage = Stage(excess)
    search, found = run(monkeypatch, stage)
    first = found.by_ledger // 3
    assert stage.tried[:firsts] == [(first // 2**n, 10) for n in range(firsts)]
    assert [p.fits for p in search.probes[:firsts]] == [*[False] * (firsts - 1), True]
    assert found.size == found.predicted
    assert len(search.probes) <= MOST_PROBES
    assert search.is_bounded(found)


def test_what_is_predicted_is_below_what_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer tries hold less here, so that the edge seems to be far beyond the try that failed."""
    stage = Stage(4.0, growth=0.1)
    honest = stage.try_batch

    def try_batch(config: RunConfig, machine: Machine, **options: Any) -> Outcome:
        outcome = honest(config, machine, **options)
        return replace(outcome, fits=outcome.fits and len(stage.tried) > 1)

    monkeypatch.setattr(stage, "try_batch", try_batch)
    search, found = run(monkeypatch, stage)
    assert found.predicted == search.probes[0].batch_size - 1


def test_there_are_eight_tries_at_most_however_wrong_the_first_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """It promises thirty times what shorter tries show, one after another."""
    search, found = run(monkeypatch, Stage(2.9, growth=0.01))
    assert found.size is not None
    assert found.predicted > 30 * found.size
    assert 6 < len(search.probes) <= MOST_PROBES


def test_the_search_ends_where_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(1000.0)
    search, found = run(monkeypatch, stage)
    assert (found.size, found.reason) == (None, "none trains: out of memory")
    assert [p.fits for p in search.probes] == [False] * len(search.probes)
    assert len(search.probes) < MOST_PROBES
    assert search.probes[-1].batch_size == 1


def test_the_winner_is_tried_for_longer_and_made_smaller_until_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first try, as long, lets the prediction know; two steps of what is beyond it do not."""
    search, found = run(monkeypatch, Stage(growth=1.08), gib=24.0)
    assert found.size is not None
    assert found.size == pytest.approx(found.predicted, rel=0.05)
    long = [(p.batch_size, p.fits) for p in search.probes if p.steps == 10]
    short = max(p.batch_size for p in search.probes if p.steps == 2 and p.fits)
    assert long[0] == (found.by_ledger // 3, True)
    assert long[1] == (short, False)
    assert long[-1] == (found.size, True)
    assert 0.8 * short - 1 < found.size < short
    assert len(search.probes) <= MOST_PROBES


def test_where_no_try_for_longer_holds_the_first_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    class Growing(Stage):
        def try_batch(self, config: RunConfig, machine: Machine, *, steps: int, **options: Any) -> Outcome:
            self.growth = 9.0 if len(self.tried) > 1 else 1.0
            return super().try_batch(config, machine, steps=steps, **options)

    search, found = run(monkeypatch, Growing(), gib=24.0)
    assert found.winner == search.probes[0]
    assert found.size == found.by_ledger // 3
    assert len(search.probes) <= MOST_PROBES


def test_where_nothing_holds_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    search, found = run(monkeypatch, Stage(excess=1.3), gib=2.54)
    assert (found.size, found.winner) == (None, None)
    assert found.reason == "none trains: out of memory"
    assert [p.batch_size for p in search.probes] == [1]


def test_the_settings_keep_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    search, found = run(monkeypatch, Stage(), gib=6.0)
    record = max_batch_record(search, found)
    assert found.size is not None
    assert 4 <= found.size < 8
    assert (record.batch_size, record.micro_batch_size, record.max_batch) == (16, 4, found.size)
    assert (record.claim and record.claim.value, record.steps) == (36.0, 10)
    assert record.limit_gib == 6.0
    assert record.peak_gib is not None
    assert record.peak_gib < (1 - MARGIN_FRAC) * 6.0


def test_what_cannot_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    _, found = run(monkeypatch, stage, gib=1.0)
    assert (found.size, stage.tried) == (None, [])
    assert found.reason is not None
    assert found.reason.startswith("one sequence takes 2.54 GiB by the ledger, ")
    assert found.reason.endswith("0.95 GiB are allowed: raise --memory-gib")


def test_what_the_budget_has_no_time_for_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    _, found = run(monkeypatch, stage, budget_s=5.0)
    assert stage.tried == []
    assert found.not_run_s is not None
    assert found.not_run_s > 5.0
    assert found.reason == f"not run, would take {found.not_run_s:,.0f} s: raise --budget-s"


def test_a_search_that_the_budget_ends_tries_what_it_has_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(step_s=lambda c: 2.0 * c.train.batch_size)
    search, found = run(monkeypatch, stage, budget_s=850.0)
    assert found.reason is not None
    assert found.reason.startswith("--budget-s ended the search: raise it by ")
    assert found.size == max(p.batch_size for p in search.probes if p.fits and p.steps == 2)
    assert stage.tried[-1] == (found.size, 10)
    assert stage.now < 850.0


# all presets


def test_more_than_is_free_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "find_room", lambda *_: Room(GIB, 4 * GIB, 1e12))
    with pytest.raises(ConfigError, match=r"--memory-gib = 5.*only 3\.94 GiB are free"):
        run_max_batch([replace_device(tiny_config())], memory_gib=5.0, budget_s=9.0, watch=lambda _: None)


def test_a_cpu_gives_60_per_cent_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "find_room", lambda *_: Room(0, 10 * GIB, 1e12))
    monkeypatch.setattr(Search, "run", lambda _: module.Found(3, 3))
    report = run_max_batch([replace_device(tiny_config())], memory_gib=None, budget_s=9.0, watch=lambda _: None)
    assert report.results[0].limit_gib == pytest.approx(6.0)


def replace_device(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"device": "cpu"})})


def test_a_try_that_does_not_end_ends_the_search_with_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told as a lower bound, since nothing larger was seen not to fit."""

    class Slow(Stage):
        def try_batch(self, config: RunConfig, *rest: Any, steps: int, **options: Any) -> Outcome:
            if len(self.tried) > 1:
                raise TimeoutError
            return super().try_batch(config, *rest, steps=steps, **options)

    search, found = run(monkeypatch, Slow())
    record = max_batch_record(search, found)
    assert found.reason is not None
    assert found.reason.startswith("--budget-s ended the try of ")
    assert (record.max_batch, record.steps, record.is_bounded) == (found.predicted, 2, False)
    bounded = max_batch_record(*run(monkeypatch, Stage()))
    assert bounded.is_bounded


def test_a_shorter_winner_that_does_not_end_leaves_what_was_seen_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size was never tried: the answer is one that was."""

    class Slow(Stage):
        def try_batch(self, config: RunConfig, *rest: Any, steps: int, **options: Any) -> Outcome:
            if len(self.tried) > 1 and steps > 2:
                self.growth = 9.0
                if any(at == 10 for _, at in self.tried[1:]):
                    raise TimeoutError
            return super().try_batch(config, *rest, steps=steps, **options)

    search, found = run(monkeypatch, Slow(), gib=24.0)
    assert found.winner is not None
    assert (found.size, found.winner.fits) == (found.winner.batch_size, True)
    assert found.size < max(p.batch_size for p in search.probes if p.fits)


def test_the_speed_that_was_seen_bounds_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the assumed speed the first try takes seconds; at the one it shows, the next would take beyond the budget."""
    stage = Stage(step_s=lambda c: 3.0 * c.train.batch_size)
    slow, found = run(monkeypatch, stage, budget_s=400.0)
    assert [p.steps for p in slow.probes] == [10]
    assert found.size == slow.probes[0].batch_size
    assert found.reason is not None
    seconds = float(found.reason.removesuffix(" s for another try").split()[-1].replace(",", ""))
    config = with_micro_batch(CONFIG, found.predicted)
    assert seconds == pytest.approx(10 + 10 + (12 + 2 / 3) * 3.0 * config.train.batch_size, rel=0.02)


def test_compiling_takes_a_minute_of_each_try(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = []
    for machine in (CPU, replace(CPU, compiles=True)):
        room = Room(GIB, 64 * GIB, peak_flops_per_s=1e12)
        found = Search(CONFIG, machine, room, 12 * GIB, 0.0, lambda _: None).run()
        needed.append(found.not_run_s)
    assert needed[1] - needed[0] == pytest.approx(60.0)


def found_by(monkeypatch: pytest.MonkeyPatch, find: Callable[[Search], module.Found]) -> Callable[..., Any]:
    """`run_max_batch` in which `find` is the search."""
    monkeypatch.setattr(running, "find_room", lambda *_: Room(0, 10 * GIB, 1e12))
    monkeypatch.setattr(Search, "run", find)
    return lambda *configs, **options: run_max_batch(
        [replace_device(config) for config in configs], memory_gib=None, watch=lambda _: None, **options
    )


def test_every_preset_has_its_part_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one leaves goes to the others."""
    now = 0.0
    ends: list[float] = []

    def find(search: Search) -> module.Found:
        nonlocal now
        ends.append(search.ends)
        now += 10.0
        return module.Found(3, 3)

    monkeypatch.setattr("time.monotonic", lambda: now)
    found_by(monkeypatch, find)(tiny_config(), tiny_config(), tiny_config(), budget_s=90.0)
    assert ends == [30.0, 50.0, 90.0]


def test_all_are_searched_on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    other = tiny_config("model.attention=reference")
    with pytest.raises(ConfigError, match="presets of one run are measured on one device"):
        found_by(monkeypatch, lambda _: module.Found(3, 3))(tiny_config(), other, budget_s=9.0)


def test_a_fault_ends_the_search_with_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where others take the memory: what fitted before does not count for nothing."""

    class Disturbed(Stage):
        def try_batch(self, config: RunConfig, machine: Machine, *, steps: int, **options: Any) -> Outcome:
            if len(self.tried) == 2:
                raise RunError("Other processes took the memory meanwhile.")
            return super().try_batch(config, machine, steps=steps, **options)

    search, found = run(monkeypatch, Disturbed(), gib=24.0)
    assert found.reason == "Other processes took the memory meanwhile."
    assert (found.size, found.winner) == (found.predicted, search.probes[1])
    assert found.by_ledger > 0

    class Broken(Stage):
        def try_batch(self, *_: Any, **__: Any) -> Outcome:
            raise RunError("A step made no update.")

    _, none = run(monkeypatch, Broken())
    assert (none.size, none.reason) == (None, "A step made no update.")


@pytest.mark.parametrize(("excess", "first_fits"), [(6.5, False), (2.9, True), (20.0, False)])
def test_a_ledger_that_is_far_off_is_made_up_for(
    monkeypatch: pytest.MonkeyPatch, excess: float, first_fits: bool
) -> None:
    search, found = run(monkeypatch, Stage(excess=excess), gib=200.0)
    assert search.probes[0].fits == first_fits
    assert found.size is not None
    assert len(search.probes) <= MOST_PROBES
    limit = int((1.0 - MARGIN_FRAC) * 200 * GIB)
    edge = max(
        n
        for n in range(1, 400)
        if Stage(excess).try_batch(with_micro_batch(CONFIG, n), CPU, steps=2, limit=limit, timeout_s=0.0).fits
    )
    assert found.size <= edge
    assert found.size > 0.6 * edge or not search.is_bounded(found)


@pytest.mark.parametrize("excess", [0.5, 1.0, 6.5, 20.0])
def test_no_more_than_eight_tries_are_made(monkeypatch: pytest.MonkeyPatch, excess: float) -> None:
    """Though none but the first, if it fits, holds for longer."""

    class Growing(Stage):
        def try_batch(self, config: RunConfig, machine: Machine, *, steps: int, **options: Any) -> Outcome:
            self.growth = 9.0 if self.tried else 1.0
            return super().try_batch(config, machine, steps=steps, **options)

    search, found = run(monkeypatch, Growing(excess=excess), gib=200.0)
    assert len(search.probes) <= MOST_PROBES
    assert found.size is None or found.winner == search.probes[0]


def test_what_is_far_below_what_failed_is_a_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    search, found = run(monkeypatch, Stage(), gib=24.0)
    failed = min(p.batch_size for p in search.probes if not p.fits)
    assert search.is_bounded(found)
    assert not search.is_bounded(replace(found, size=failed // 2))
    assert not search.is_bounded(module.Found(9, 9))


def test_one_limit_is_everyones(monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([10 * GIB, 8 * GIB])
    ask = found_by(monkeypatch, lambda _: module.Found(3, 3))
    monkeypatch.setattr(running, "find_room", lambda *_: Room(0, next(free), 1e12))
    report = ask(tiny_config(), tiny_config(), budget_s=9.0)
    assert [r.limit_gib for r in report.results] == [pytest.approx(6.0)] * 2
