"""Several processes as one contestant: who is measured, what comes of their figures, and the table of it."""

from dataclasses import replace
from typing import Any

import pytest

from colakit.bench.report import bench_record, ratios, with_efficiency
from colakit.bench.study import Measured
from colakit.bench.worker import started, together
from colakit.cli.bench_nproc import sharing_contestants
from colakit.errors import ConfigError
from colakit.records.bench import BenchRecord
from tests.bench.tiny import CPU, MEMORY, contestant, figures, tiny_config


def test_each_preset_is_measured_alone_and_shared_and_a_muon_one_by_adamw_too() -> None:
    config = tiny_config(
        "train.batch_size=12", "train.micro_batch_size=4", "parallel.strategy=zero1", "train.device=cpu"
    )
    everyone = sharing_contestants([config], 3, compiled=False)
    assert [(c.name, c.config.train.batch_size, c.nproc, c.own_batch_size) for c in everyone] == [
        ("cola-fan-dropout-muon", 4, 1, 4),
        ("cola-fan-dropout-muon, zero1 x 3", 12, 3, 4),
        ("cola-fan-dropout-muon by AdamW", 4, 1, 4),
        ("cola-fan-dropout-muon by AdamW, zero1 x 3", 12, 3, 4),
    ]
    assert [c.config.optim.optimizer for c in everyone] == ["muon", "muon", "adamw", "adamw"]
    assert len({c.threads for c in everyone}) == 1, "one alone has as many threads as each of several"
    assert {c.config.train.micro_batch_size for c in everyone} == {4}


def test_a_preset_that_trains_by_adamw_is_measured_twice() -> None:
    config = tiny_config("train.batch_size=4", "train.device=cpu", preset="original")
    names = [c.name for c in sharing_contestants([config], 2, compiled=True)]
    assert names == ["original", "original, ddp x 2", "original, compiled", "original, ddp x 2, compiled"]


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"train\.batch_size = 4: it must be divisible by the number of processes \(3\)"
    ):
        sharing_contestants([tiny_config("train.batch_size=4")], 3, compiled=False)


def test_bytes_are_the_mean_of_all_and_memory_the_most_of_one() -> None:
    first = figures(1.0, sent={"reduce": 10, "broadcast": 7}, communicating_frac=0.25)
    second = figures(2.0, sent={"reduce": 20}, memory=replace(MEMORY, optimizer=0.75, peak=1.5))
    found = together([first, second])
    assert found.sent == {"broadcast": 4, "reduce": 15}
    assert found.memory.optimizer == 0.75
    assert (found.times, found.communicating_frac) == ((1.0,), 0.25)
    assert together([first]) is first


def measured(seconds: float, nproc: int = 1, batch: int = 4, preset: str = "original", **changes: Any) -> BenchRecord:
    of = contestant(preset, f"train.batch_size={batch}", nproc=nproc, threads=3)
    return bench_record(Measured(of, figures(seconds, **changes), repeats=3), CPU, 1e9)


def test_efficiency_is_over_as_many_alone_with_as_large_a_batch() -> None:
    alone, pair, other = measured(1.0), measured(1.25, 2, 8), measured(1.0, 2, 16)
    records = with_efficiency([alone, pair, other])
    assert [r.efficiency_frac for r in records] == [None, pytest.approx(0.8), None]
    assert (pair.processes, pair.strategy, alone.strategy, pair.threads) == (2, "ddp", None, 3)
    assert pair.mfu_frac is None, "the peak is one process's"


def test_several_are_compared_with_several() -> None:
    records = [measured(1.0, batch=8), measured(1.0, 2, 8), measured(0.5, 2, 8, preset="cola")]
    assert [(r.of, r.over) for r in ratios(records, [])] == [("cola, ddp x 2", "original, ddp x 2")]


def test_two_processes_take_their_turns_together() -> None:
    of = contestant("cola-fan-dropout-muon", "train.batch_size=4", "parallel.strategy=zero1", nproc=2, threads=1)
    with started(of, CPU, gives_back=False) as worker:
        assert worker.warm_up(100.0) > 0
        worker.turn(2, 60.0)
        found = worker.figures(60.0)
        processes = [member.process for member in worker._members]
    assert [p.exitcode for p in processes] == [0, 0]
    assert len(found.times) == 2
    sent = found.sent or {}
    size = 4 * found.parameters
    assert sent == {"reduce": pytest.approx(size / 2, abs=99), "broadcast": pytest.approx(size / 2, abs=99)}
    assert found.communicating_frac is not None
    assert 0.0 < found.communicating_frac <= 1.0
