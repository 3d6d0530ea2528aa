"""A process for each contestant: what is asked is answered, and how it ends is told."""

import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from colakit.bench import worker as worker_module
from colakit.bench.worker import KILLED, OUT_OF_MEMORY, Lost, Seat, serve, started
from tests.bench.tiny import CPU, contestant

SEAT = Seat(0, "")


def test_a_contestant_warms_up_takes_turns_and_tells() -> None:
    with started(contestant("cola", "train.batch_size=2"), CPU, gives_back=False) as worker:
        assert worker.warm_up(60.0) > 0
        assert worker.turn(2, 60.0) > 0
        worker.turn(1, 60.0)
        assert len(worker.figures(60.0).times) == 3
        process = worker._members[0].process
    assert process.exitcode == 0, "it ended by itself"


def test_one_whose_asker_is_killed_ends_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    with started(contestant("cola", "train.batch_size=2"), CPU, gives_back=False) as worker:
        worker.warm_up(60.0)
        ours, process = worker._members[0]
        ours.send(3)
        ours.close()
        process.join(60.0)
        assert process.exitcode == 0
    assert capfd.readouterr().err == ""


def test_one_that_is_killed_is_lost() -> None:
    with started(contestant("cola"), CPU, gives_back=False) as worker:
        worker.warm_up(60.0)
        assert worker._members[0].process.pid is not None
        os.kill(worker._members[0].process.pid, signal.SIGKILL)
        with pytest.raises(Lost, match=KILLED):
            worker.turn(1, 60.0)


def test_an_answer_that_takes_too_long_is_no_answer() -> None:
    with started(contestant("cola"), CPU, gives_back=False) as worker, pytest.raises(TimeoutError):
        worker.warm_up(0.0)


class Failing:
    """A course that cannot be begun."""

    error: BaseException

    def __init__(self, *_: Any, **__: Any) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
    ids=["cuda", "python", "torch-cpu"],
)
def test_a_lack_of_memory_is_an_answer(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    monkeypatch.setattr(worker_module, "Course", type("Fails", (Failing,), {"error": error}))
    ours, theirs = multiprocessing.Pipe()
    serve(theirs, contestant(), CPU, False, SEAT)
    assert ours.recv() == OUT_OF_MEMORY


def test_another_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "Course", type("Fails", (Failing,), {"error": RuntimeError("mat1 and mat2")}))
    _, theirs = multiprocessing.Pipe()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        serve(theirs, contestant(), CPU, False, SEAT)


def test_an_interruption_is_not_for_the_worker() -> None:
    """Whoever asks answers it, and ends the worker: else it would show a traceback, wherever it was."""
    with started(contestant("cola", "train.batch_size=2"), CPU, gives_back=False) as worker:
        os.kill(worker._members[0].process.pid or 0, signal.SIGINT)
        assert worker.warm_up(100.0) > 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_worker_can_be_started_from_any_thread() -> None:
    def warm_up() -> float:
        with started(contestant("cola", "train.batch_size=2"), CPU, gives_back=False) as worker:
            return worker.warm_up(100.0)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(warm_up).result() > 0


@pytest.mark.parametrize("gives_back", [True, False])
def test_whether_memory_is_given_back_reaches_the_course(monkeypatch: pytest.MonkeyPatch, gives_back: bool) -> None:
    asked: list[bool] = []

    class Asked(Failing):
        error = MemoryError()

        def __init__(self, *_: Any, gives_back: bool, **__: Any) -> None:
            asked.append(gives_back)
            super().__init__()

    monkeypatch.setattr(worker_module, "Course", Asked)
    ours, theirs = multiprocessing.Pipe()
    serve(theirs, contestant(), CPU, gives_back, SEAT)
    assert ours.recv() == OUT_OF_MEMORY
    assert asked == [gives_back]
