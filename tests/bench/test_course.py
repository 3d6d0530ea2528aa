"""What one contestant does in its process: the trainer's own step, its times, and what it holds."""

import math
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

import pytest

from colakit.analysis.memory import memory_ledger
from colakit.analysis.params import total_params
from colakit.bench import course as course_module
from colakit.bench.contestant import Contestant
from colakit.bench.course import WARMUP_STEPS, Course
from colakit.data.loader import Batch
from colakit.train.step import StepResult, TrainStep
from colakit.units import GIB
from tests.bench.tiny import CPU, contestant


@dataclass
class Scripted:
    """Stands for the step: each takes the next of `seconds` on a clock of its own."""

    seconds: list[float] = field(default_factory=lambda: [1.0] * 99)
    skipped: tuple[int, ...] = ()
    now: float = 1000.0
    steps: list[int] = field(default_factory=list)
    batches: list[Sequence[Batch]] = field(default_factory=list)
    made: list[TrainStep] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Scripted":
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

        def call(step: TrainStep, i: int, batches: Sequence[Batch]) -> StepResult:
            assert step.model.training
            part = self.seconds[len(self.steps)] / len(batches)
            for _ in batches:
                with step.forward_clock.measure():
                    self.now += 0.25 * part
                with step.backward_clock.measure():
                    self.now += 0.5 * part
            self.now += 0.25 * self.seconds[len(self.steps)]
            self.steps.append(i)
            self.batches.append(batches)
            self.made.append(step)
            return StepResult(1.0, 0.0, 1.0, 0.1, 1, skipped="not finite" if i in self.skipped else None)

        monkeypatch.setattr(TrainStep, "__call__", call)
        return self


def measured(of: Contestant, *turns: int) -> Course:
    course = Course(of, CPU)
    with closing(course):
        course.warm_up()
        for n in turns:
            course.turn(n)
    return course


def test_the_warm_up_is_not_among_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    n_warm = WARMUP_STEPS + 1
    fake = Scripted(seconds=[9.0, 8.0, 7.0, 1.0, 4.0, 2.0]).install(monkeypatch)
    found = measured(contestant(), 1, 2).figures()
    assert found.times == pytest.approx((1.0, 4.0, 2.0))
    assert found.first_step_s == pytest.approx(9.0)
    assert found.forward_ms == pytest.approx(500.0), "a quarter of the median step that is timed"
    assert fake.steps == list(range(n_warm + 3))


@pytest.mark.parametrize("micro", [6, 2])
def test_passes_are_those_of_all_micro_batches(monkeypatch: pytest.MonkeyPatch, micro: int) -> None:
    Scripted().install(monkeypatch)
    found = measured(contestant("cola", "train.batch_size=6", f"train.micro_batch_size={micro}"), 2).figures()
    assert (found.forward_ms, found.backward_ms) == (pytest.approx(250.0), pytest.approx(500.0))


def test_a_warm_up_tells_what_a_step_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(seconds=[9.0, 8.0, 7.0]).install(monkeypatch)
    with closing(Course(contestant(), CPU)) as course:
        assert course.warm_up() == pytest.approx(7.0)


def test_who_gives_back_takes_steps_that_are_not_timed_at_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(course_module, "give_back_freed_memory", lambda: given.append(len(fake.steps)))
    fake = Scripted(seconds=[9.0, 8.0, 7.0, 30.0, 20.0, 1.0, 4.0, 30.0, 20.0, 2.0]).install(monkeypatch)
    with closing(Course(contestant(), CPU, gives_back=True)) as course:
        assert course.warm_up() == pytest.approx(7.0)
        assert (course.turn(2), course.turn(1)) == (pytest.approx(5.0), pytest.approx(2.0))
    found = course.figures()
    assert given == [3, 7, 10]
    assert found.times == pytest.approx((1.0, 4.0, 2.0))
    assert found.forward_ms == pytest.approx((2500 + 2000) / 2 / 4)
    given.clear()
    Scripted().install(monkeypatch)
    measured(contestant(), 1)
    assert given == []


def test_a_step_without_its_update_is_counted_where_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted(skipped=(0, WARMUP_STEPS + 2)).install(monkeypatch)
    assert measured(contestant(), 3).figures().skipped == 1


@pytest.mark.parametrize(("micro", "sizes"), [(None, [6]), (2, [2, 2, 2]), (16, [6])])
def test_a_step_gets_what_training_would_give_it(
    monkeypatch: pytest.MonkeyPatch, micro: int | None, sizes: list[int]
) -> None:
    fake = Scripted().install(monkeypatch)
    sets = ("train.batch_size=6", *((f"train.micro_batch_size={micro}",) if micro else ()), "optim.grad_clip=0.37")
    of = contestant("cola-fan-dropout-muon", *sets)
    measured(of, 2)
    for batches in fake.batches:
        assert [b.tokens.shape for b in batches] == [(n, 10) for n in sizes]
        assert all((b.tokens[:, 1:] == b.targets[:, :-1]).all() for b in batches)
        assert all(b.tokens.min() >= 0 and b.targets.max() < 61 for b in batches)
    step = fake.made[0]
    assert (step.grad_clip, step.machine) == (0.37, CPU)
    assert step.lr_at(of.config.optim.warmup_steps) == pytest.approx(of.config.optim.lr, rel=1e-3)
    assert set(step.optimizer.parts) == {"muon", "adamw"}


def test_documents_are_kept_apart_where_training_would_keep_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Scripted().install(monkeypatch)
    sets = ("train.batch_size=60", "model.seq_len=50")
    measured(contestant("cola", *sets, "data.attend_across_documents=false"), 1)
    starts = [b.document_starts for batches in fake.batches for b in batches]
    n_starts = sum(int(each.sum()) for each in starts if each is not None)
    assert all(each is not None and each.shape == (60, 50) for each in starts)
    assert 2 <= n_starts <= 40  # 12 of 12,000
    fake.batches.clear()
    measured(contestant("cola", *sets), 1)
    assert all(b.document_starts is None for batches in fake.batches for b in batches)


@pytest.mark.parametrize("preset", ["cola-fan-dropout-muon", "original", "cola-m"])
def test_memory_by_kind_is_that_of_the_ledger(preset: str) -> None:
    """Its activations to a twentieth; of the peak, gradients are not all there when the others are at their most."""
    sets = ("train.batch_size=16", "model.seq_len=40", "model.n_layers=4", "model.vocab_size=300")
    of = contestant(preset, *sets, "train.device=cpu")
    found, ledger = measured(of, 1).figures(), memory_ledger(of.config)
    memory = found.memory
    assert memory.weights * GIB == memory.gradients * GIB == ledger.weights
    assert memory.optimizer * GIB == pytest.approx(ledger.muon_state + ledger.adamw_state, abs=4 * 99)
    kept = ledger.cola_m_activations if ledger.is_cola_m else ledger.plain_activations
    assert kept is not None
    assert memory.activations is not None
    assert memory.activations * GIB == pytest.approx(kept + ledger.loss_gradients, rel=0.05)
    assert memory.peak is not None
    total = ledger.total
    assert total is not None
    assert (total - ledger.gradients) * 0.95 < memory.peak * GIB < total * 1.05
    assert found.parameters == total_params(of.config.model)


@pytest.mark.parametrize("options", [{}, {"peer": "torch-muon"}, {"peer": "hf-llama"}])
def test_a_real_course_has_every_figure_and_leaves_no_thread(options: dict[str, str]) -> None:
    before = threading.active_count()
    found = measured(contestant("original", "optim.optimizer=muon", "train.batch_size=2", **options), 2, 1).figures()
    assert threading.active_count() == before
    assert len(found.times) == len(found.data_times) == 3
    assert found.skipped == 0
    assert found.cpu_util_frac >= 0.0, "its clock ticks too seldom for such steps"
    for figure in (*found.times, found.forward_ms, found.backward_ms, found.memory.peak):
        assert figure is not None
        assert math.isfinite(figure)
        assert figure > 0
    parts = {part.name for part in found.optimizer}
    assert parts == ({"adamw"} if options.get("peer") == "hf-llama" else {"muon", "adamw"})
