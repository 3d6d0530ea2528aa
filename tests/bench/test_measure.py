"""What is timed, what is divided by what, and what a lack of memory leaves. In this process, on a clock of our own."""

import math
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import pytest
import torch

from colakit.bench import measure as measuring
from colakit.bench.measure import WARMUP_STEPS, bench, measure
from colakit.build import Machine
from colakit.config.load import resolve
from colakit.config.schema import RunConfig
from colakit.data.loader import Batch
from colakit.records.bench import BenchRecord
from colakit.train.step import StepResult, TrainStep

CPU = Machine(torch.device("cpu"), torch.float32)
TINY = ("d_model=24", "n_layers=2", "n_heads=3", "n_kv_heads=3", "d_ff=40", "vocab_size=61", "seq_len=10")
FIGURES = ("it_per_s", "examples_per_s", "tokens_per_s", "step_ms", "vram_gib", "rss_gib")


def tiny_config(*sets: str, preset: str = "cola-fan-dropout-muon") -> RunConfig:
    return resolve(preset, smoke_run=True, sets=[*(f"model.{s}" for s in TINY), *sets]).config


@dataclass
class Bench:
    """Stands for the clock and the step: each step takes the next of `seconds`, or raises `error`."""

    seconds: list[float] = field(default_factory=lambda: [1.0] * 99)
    error: BaseException | None = None
    skipped: tuple[int, ...] = ()
    now: float = 1000.0
    steps: list[int] = field(default_factory=list)
    batches: list[Sequence[Batch]] = field(default_factory=list)
    training: list[bool] = field(default_factory=list)
    made: list[TrainStep] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Bench":
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

        def call(step: TrainStep, i: int, batches: Sequence[Batch]) -> StepResult:
            if self.error is not None:
                raise self.error
            self.now += self.seconds[len(self.steps)]
            self.steps.append(i)
            self.batches.append(batches)
            self.training.append(step.model.training)
            self.made.append(step)
            return StepResult(
                loss=1.0,
                accuracy=0.0,
                grad_norm=1.0,
                lr=0.1,
                tokens=1,
                skipped="not finite" if i in self.skipped else None,
            )

        monkeypatch.setattr(TrainStep, "__call__", call)
        return self


def assert_no_figures(record: BenchRecord) -> None:
    assert [getattr(record, name) for name in FIGURES] == [None] * len(FIGURES)


def test_the_warm_up_does_not_count_and_the_median_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WARMUP_STEPS > 0
    # The mean of the three is 4; with the slow warm-up the median is 9 or more.
    fake = Bench(seconds=[100.0] * WARMUP_STEPS + [1.0, 9.0, 2.0]).install(monkeypatch)
    record = measure(tiny_config(), CPU, 3)
    assert record.step_ms == pytest.approx(2000.0)
    assert len(fake.steps) == WARMUP_STEPS + 3
    assert record.steps == 3


def test_rates_follow_from_the_step_time(monkeypatch: pytest.MonkeyPatch) -> None:
    Bench(seconds=[0.5] * 99).install(monkeypatch)
    record = measure(tiny_config("train.batch_size=6", "train.micro_batch_size=2"), CPU, 4)
    assert record.it_per_s == pytest.approx(2.0)
    assert record.step_ms == pytest.approx(500.0)
    assert record.examples_per_s == pytest.approx(12.0)  # the whole batch, not a micro-batch
    assert record.tokens_per_s == pytest.approx(120.0)
    assert (record.preset, record.batch_size, record.seq_len) == ("cola-fan-dropout-muon", 6, 10)
    assert (record.device, record.dtype, record.attention) == ("CPU, float32", "float32", "sdpa")


def test_a_cpu_has_no_vram_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    Bench().install(monkeypatch)
    record = measure(tiny_config(), CPU, 1)
    assert record.vram_gib is None
    assert record.reason == "no GPU, so no VRAM"
    # A Python with torch loaded: more than 100 MiB and less than this machine could have.
    assert record.rss_gib is None or 0.1 < record.rss_gib < 1000


@pytest.mark.parametrize(("micro", "sizes"), [(None, [6]), (2, [2, 2, 2]), (16, [6])])
def test_a_step_gets_what_training_would_give_it(
    monkeypatch: pytest.MonkeyPatch, micro: int | None, sizes: list[int]
) -> None:
    fake = Bench().install(monkeypatch)
    sets = ("train.batch_size=6", *((f"train.micro_batch_size={micro}",) if micro else ()), "optim.grad_clip=0.37")
    config = tiny_config(*sets)
    measure(config, CPU, 2)
    assert fake.training == [True] * (WARMUP_STEPS + 2)  # with dropout
    assert fake.steps == sorted(set(fake.steps))
    for batches in fake.batches:
        assert [b.tokens.shape for b in batches] == [(n, 10) for n in sizes]
        assert [b.targets.shape for b in batches] == [(n, 10) for n in sizes]
        assert all(torch.equal(b.tokens[:, 1:], b.targets[:, :-1]) for b in batches)
        assert all(b.tokens.min() >= 0 and b.targets.max() < 61 for b in batches)
    step = fake.made[0]
    assert (step.grad_clip, step.machine) == (0.37, CPU)
    assert step.lr_at(config.optim.warmup_steps) == pytest.approx(config.optim.lr, rel=1e-3)
    assert set(step.optimizer.parts) == {"muon", "adamw"}


def test_documents_are_kept_apart_where_training_would_keep_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Bench().install(monkeypatch)
    sets = ("train.batch_size=200", "train.micro_batch_size=100", "model.seq_len=50")
    measure(tiny_config(*sets, "data.attend_across_documents=false"), CPU, 1)
    starts = [batch.document_starts for batch in fake.batches[0]]
    assert [each.shape for each in starts if each is not None] == [(100, 50), (100, 50)]
    assert 2 <= sum(int(each.sum()) for each in starts if each is not None) <= 30  # 10 of 10,000
    fake.batches.clear()
    measure(tiny_config(*sets), CPU, 1)
    assert all(batch.document_starts is None for batches in fake.batches for batch in batches)


def test_a_real_measurement_has_every_figure() -> None:
    record = measure(tiny_config("train.batch_size=2"), CPU, 2)
    for name in ("it_per_s", "examples_per_s", "tokens_per_s", "step_ms"):
        value = getattr(record, name)
        assert math.isfinite(value), name
        assert value > 0, name


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
    ids=["cuda", "python", "torch-cpu"],
)
def test_out_of_memory_is_a_record_with_the_reason(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    Bench(error=error).install(monkeypatch)
    record = measure(tiny_config("train.batch_size=3"), CPU, 5)
    assert record.reason == "out of memory"
    assert (record.batch_size, record.steps, record.device) == (3, 5, "CPU, float32")
    assert_no_figures(record)


def test_steps_without_their_update_are_not_timed_as_training(monkeypatch: pytest.MonkeyPatch) -> None:
    Bench(skipped=(WARMUP_STEPS + 1,)).install(monkeypatch)
    record = measure(tiny_config(), CPU, 3)
    assert record.reason is not None
    assert "1 updates skipped" in record.reason
    assert_no_figures(record)


def test_another_error_is_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    Bench(error=RuntimeError("mat1 and mat2 shapes cannot be multiplied")).install(monkeypatch)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        measure(tiny_config(), CPU, 1)


class DyingPool:
    """A pool whose process is killed where the batch size is 4 or more, and which otherwise works here."""

    made = 0

    def __init__(self, *_: object, **__: object) -> None:
        DyingPool.made += 1

    def __enter__(self) -> "DyingPool":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def shutdown(self, *_: object, **__: object) -> None:
        pass

    def submit(self, function, *arguments, **named) -> Future[BenchRecord]:  # type: ignore[no-untyped-def]
        future: Future[BenchRecord] = Future()
        config = next(a for a in (*arguments, *named.values()) if isinstance(a, RunConfig))
        if config.train.batch_size >= 4:
            future.set_exception(BrokenProcessPool("terminated abruptly"))
        else:
            future.set_result(function(*arguments, **named))
        return future


def test_a_killed_process_is_a_record_and_the_next_size_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    Bench(seconds=[0.25] * 99).install(monkeypatch)
    monkeypatch.setattr(measuring, "ProcessPoolExecutor", DyingPool)
    monkeypatch.setattr(DyingPool, "made", 0)
    configs = [tiny_config(f"train.batch_size={n}", "train.device=cpu") for n in (1, 4, 2)]
    first, killed, last = bench(configs, 3)
    assert DyingPool.made == 3  # a process for each, so that the peaks are their own
    assert [r.batch_size for r in (first, killed, last)] == [1, 4, 2]
    assert killed.reason is not None
    assert "killed" in killed.reason
    assert_no_figures(killed)
    assert (killed.steps, killed.seq_len) == (3, 10)
    assert first.it_per_s == last.it_per_s == pytest.approx(4.0)
