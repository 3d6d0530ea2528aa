"""One try: what training does, in a process that is ended where it holds more than it may."""

import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch

from colakit.bench import probe as module
from colakit.bench.probe import Outcome, Room, _Watch, find_room, try_batch, with_micro_batch
from colakit.build import Machine
from colakit.config.load import resolve
from colakit.config.schema import RunConfig
from colakit.errors import RunError
from tests.bench.tiny import CPU, tiny_config

GIB = 2**30


def test_one_micro_batch_is_enough_where_it_is_the_batch_and_two_show_what_waits() -> None:
    config = tiny_config("train.batch_size=8")
    sizes = {n: with_micro_batch(config, n).train for n in (3, 8, 11)}
    assert {n: (t.batch_size, t.effective_micro_batch_size) for n, t in sizes.items()} == {
        3: (6, 3),
        8: (8, 8),
        11: (11, 11),
    }


def test_a_try_makes_its_steps_with_an_evaluation_between(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    step, score = module.OwnStep.__call__, module.LMScorer.__call__

    def stepping(self: Any, n: int, batches: Any) -> bool:
        done.append(f"step {n} of {len(batches)} by {len(batches[0].tokens)}")
        return step(self, n, batches)

    def evaluating(self: Any, batch: Any) -> Any:
        done.append(f"evaluation of {len(batch.tokens)}")
        return score(self, batch)

    monkeypatch.setattr(module.OwnStep, "__call__", stepping)
    monkeypatch.setattr(module.LMScorer, "__call__", evaluating)
    outcome = module._make_steps(with_micro_batch(tiny_config("train.batch_size=8"), 3), CPU, steps=3)
    assert done == ["step 0 of 2 by 3", "evaluation of 3", "step 1 of 2 by 3", "step 2 of 2 by 3"]
    assert outcome.fits
    assert outcome.step_s


def test_a_try_that_fits_tells_what_it_held() -> None:
    outcome = try_batch(tiny_config(), CPU, steps=2, limit=4 * GIB, timeout_s=100.0)
    assert (outcome.fits, outcome.reason) == (True, None)
    assert outcome.peak is not None
    assert 0.1 * GIB < outcome.peak < GIB
    assert outcome.step_s is not None
    assert outcome.step_s < outcome.seconds


def test_one_that_holds_more_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("model.seq_len=512", "model.n_layers=4", "train.batch_size=64")
    whole = try_batch(config, CPU, steps=2, limit=8 * GIB, timeout_s=100.0)
    assert whole.peak is not None
    limit = whole.peak // 2
    outcome = try_batch(config, CPU, steps=2, limit=limit, timeout_s=100.0)
    assert (outcome.fits, outcome.peak, outcome.step_s) == (False, None, None)
    assert outcome.reason == f"held more than {limit / GIB:.2f} GiB"
    # Where no look sees it, what the process itself knows of its peak does.
    monkeypatch.setattr(module._Watch, "look", lambda _: 0)
    unseen = try_batch(config, CPU, steps=2, limit=limit, timeout_s=100.0)
    assert (unseen.fits, unseen.reason) == (False, outcome.reason)
    assert unseen.peak is not None
    assert unseen.peak > limit


def test_one_that_takes_too_long_raises() -> None:
    with pytest.raises(TimeoutError):
        try_batch(tiny_config(), CPU, steps=2, limit=4 * GIB, timeout_s=0.0)
    assert not multiprocessing.active_children()
    assert not [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


def test_a_step_without_an_update_is_told() -> None:
    with pytest.raises(RunError, match="made no update"):
        try_batch(tiny_config("optim.lr=1e30", "optim.warmup_steps=1"), CPU, steps=9, limit=4 * GIB, timeout_s=100.0)


def test_where_others_take_the_memory_a_try_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the size fits is not known then: no answer is better than a wrong one."""
    monkeypatch.setattr(module, "free_memory", lambda: 2**20)
    with pytest.raises(RunError, match="Other processes took the memory meanwhile"):
        try_batch(tiny_config(), CPU, steps=2, limit=4 * GIB, timeout_s=100.0)
    assert not multiprocessing.active_children()


_HOLDS = "held = b'x' * 2**28; print(len(held), flush=True); input()"


def test_what_the_compiler_holds_in_processes_of_its_own_counts() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    alone, together = (_Watch(os.getpid(), with_children=way) for way in (False, True))
    with subprocess.Popen([sys.executable, "-c", _HOLDS], **pipes) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert together.look() - alone.look() > 2**28
    assert together.look() < together.peak - 2**28  # the peak stays


@pytest.mark.parametrize("compiles", [True, False])
def test_only_who_compiles_is_watched_with_the_compiler(monkeypatch: pytest.MonkeyPatch, compiles: bool) -> None:
    asked: list[bool] = []

    class Watched(_Watch):
        def __init__(self, pid: int | None, *, with_children: bool) -> None:
            asked.append(with_children)
            super().__init__(pid, with_children=with_children)

    monkeypatch.setattr(module, "_Watch", Watched)
    with pytest.raises(TimeoutError):
        try_batch(tiny_config(), replace(CPU, compiles=compiles), steps=2, limit=4 * GIB, timeout_s=0.0)
    assert asked == [compiles]


class Ends:
    """A step that cannot be made; it goes to the other process as it is."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, connection: Any, config: RunConfig, machine: Machine, steps: int, limit: int) -> None:
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"memory": torch.OutOfMemoryError, "fault": RuntimeError}[self.how]("mat1 and mat2")


def test_one_that_the_system_kills_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_serve", Ends("killed"))
    outcome = try_batch(tiny_config(), CPU, steps=2, limit=4 * GIB, timeout_s=100.0)
    assert (outcome.fits, outcome.reason) == (False, "its process was killed, most likely for want of memory")


def test_a_fault_of_ours_is_no_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_serve", Ends("fault"))
    with pytest.raises(RunError, match="what it said is above"):
        try_batch(tiny_config(), CPU, steps=2, limit=4 * GIB, timeout_s=100.0)


class Line:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)


def test_a_lack_of_memory_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "_make_steps", refuse)
    line = Line()
    module._serve(line, tiny_config(), CPU, 2, GIB)  # type: ignore[arg-type]
    (outcome,) = line.sent
    assert (outcome.fits, outcome.reason) == (False, "out of memory")


@pytest.mark.parametrize("preset", ["original", "cola-fan-atf", "cola-fan-dropout-muon", "cola-m"])
def test_room_is_found_for_every_kind(preset: str) -> None:
    room = module._find_room(module._shrunk(resolve(preset).config), CPU)
    assert 0.1 * GIB < room.taken < room.free
    assert room.peak_flops_per_s > 1e9


def test_room_is_what_is_free_and_what_the_process_holds_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_memory", lambda: 5 * GIB)
    room = module._find_room(module._shrunk(tiny_config()), CPU)
    held = psutil.Process().memory_info().rss
    assert room.taken == pytest.approx(held, rel=0.1)
    assert room.free == 5 * GIB + room.taken


def test_where_the_blocks_are_compiled_the_compiler_takes_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[RunConfig, bool]] = []

    def tried(config: RunConfig, machine: Machine, **_: Any) -> Outcome:
        asked.append((config, machine.compiles))
        return Outcome(True, 3 * GIB, 9.0)

    monkeypatch.setattr(module, "_room", lambda *_: Room(GIB, 9 * GIB, 1e12))
    monkeypatch.setattr(module, "try_batch", tried)
    assert find_room(tiny_config(), CPU) == Room(GIB, 9 * GIB, 1e12)
    assert asked == []
    assert find_room(tiny_config(), replace(CPU, compiles=True)) == Room(3 * GIB, 9 * GIB, 1e12)
    assert asked == [(module._shrunk(tiny_config()), True)]


def test_room_is_found_in_a_process_of_its_own() -> None:
    held = bytearray(GIB)
    for i in range(0, GIB, 4096):
        held[i] = 1
    assert find_room(tiny_config(), CPU).taken < 0.7 * GIB
    assert len(held) == GIB


def _loads_what_reads_data() -> bool:
    module._make_steps(module._shrunk(tiny_config()), CPU, steps=1)
    return "datasets" in sys.modules


def test_what_training_reads_its_data_with_is_there() -> None:
    """It holds memory too, beside every step."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(_loads_what_reads_data).result()
