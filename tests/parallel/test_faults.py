"""What goes wrong in one of several processes: who says it, what is left, and what the others do meanwhile."""

import errno
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar
from unittest import mock

import pytest
import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from colakit.build import build_model
from colakit.checkpoint.folders import Checkpoints
from colakit.config.load import override
from colakit.config.schema import RunConfig
from colakit.data.loader import Batch
from colakit.parallel.world import World
from colakit.train import trainer as trainer_module
from colakit.train.shared_saver import SharedSaver
from colakit.train.sinks import SinkSet
from colakit.train.step import StepResult, TrainStep
from colakit.train.trainer import Trainer
from tests.parallel.pool import SIZE, Pool, group_of_all
from tests.parallel.runs import CPU, go, step_of, tiny_config
from tests.parallel.test_world import SILENT, outcome
from tests.train.tiny_runs import make_config, write_corpus

T = TypeVar("T")


# What the main process does alone takes longer than any wait may.


class SlowDisk(Checkpoints):
    def begin(self, step: int) -> Path:
        time.sleep(2.0)
        return super().begin(step)


class SlowToWrite(dict[str, dict[str, int]]):
    """Documents of a checkpoint, which the main process writes."""

    def items(self):  # type: ignore[no-untyped-def]
        time.sleep(2.0)
        return super().items()


def save_slowly(_: World, folder: Path) -> str:
    world = group_of_all(timeout_s=1.5)
    step = step_of(tiny_config("cola", "parallel.strategy=zero1"), world)
    saver = SharedSaver(SlowDisk(folder), keep_last=1, keep_every=None, world=world)
    saver.save(0, step.model, step.optimizer, SlowToWrite({"state.json": {"step": 0}}), None)
    saver.close()
    return "saved"


def finish_slowly(_: World, folder: Path) -> str:
    """With a model that takes long to be copied to where it stays."""
    config = override(corpus_of(folder, 0), ["train.max_steps=2", "parallel.strategy=zero1"])
    copy = trainer_module.copy_model

    def slow_copy(*arguments: Path) -> None:
        time.sleep(2.0)
        copy(*arguments)

    with mock.patch.object(trainer_module, "copy_model", slow_copy):
        world = group_of_all(timeout_s=1.5)
        trainer = Trainer(config, out=folder / "run", sinks=lambda _: SinkSet([]), world=world)
        return outcome(lambda: trainer.fit() is not None)


def test_the_model_may_take_longer_to_copy_than_any_wait(pool: Pool, tmp_path: Path) -> None:
    write_corpus(tmp_path / "poems-0.jsonl")
    assert pool.run(SIZE, finish_slowly, tmp_path) == ["returned True", *["returned False"] * 3]


@pytest.mark.slow
def test_the_main_process_may_take_longer_than_any_wait(pool: Pool, tmp_path: Path) -> None:
    assert pool.run(SIZE, save_slowly, tmp_path) == ["saved"] * SIZE
    newest = Checkpoints(tmp_path).newest()
    assert newest is not None
    assert json.loads((newest / "state.json").read_text()) == {"step": 0}


# A disk that is full, or that not all see.


@contextmanager
def full(is_full: bool) -> Iterator[None]:
    """Inside, the parts of this process do not go on the disk."""
    error = OSError(errno.ENOSPC, "No space left on device")
    with mock.patch.object(HuggingFaceStorageWriter, "write_data", side_effect=error) if is_full else nullcontext():
        yield


def save_twice(world: World, folder: Path, failing: int) -> list[str]:
    """The second time one process has no room for its part."""
    step = step_of(tiny_config("cola-fan-muon", "parallel.strategy=fsdp2"), world)
    saver = SharedSaver(
        Checkpoints(folder), keep_last=9, keep_every=None, world=world, advice=lambda: "Go on as follows."
    )
    told = []
    for number in (1, 2):
        with full(number == 2 and world.rank == failing):
            told.append(outcome(lambda n=number: saver.save(n, step.model, step.optimizer, {}, None)))  # type: ignore[misc]
    saver.close()
    return told


@pytest.mark.parametrize("failing", [0, 1])
def test_a_full_disk_is_told_with_advice_and_leaves_what_was_there(pool: Pool, tmp_path: Path, failing: int) -> None:
    first, second = pool.run(2, save_twice, tmp_path, failing)
    assert first[0] == second[0] == "returned None"
    assert second[1] == SILENT
    assert first[1].startswith(f"RunError: {tmp_path}")
    assert "No space left on device" in first[1]
    assert first[1].endswith("Go on as follows.")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"], "nothing half-written"


def save_apart(world: World, folder: Path) -> str:
    """Where each process has a disk of its own."""
    step = step_of(tiny_config("cola", "parallel.strategy=zero1"), world)
    saver = SharedSaver(Checkpoints(folder / str(world.rank)), keep_last=1, keep_every=None, world=world)
    told = outcome(lambda: saver.save(1, step.model, step.optimizer, {}, None))
    saver.close()
    return told


def test_a_checkpoint_that_not_all_see_is_refused(pool: Pool, tmp_path: Path) -> None:
    told, *others = pool.run(3, save_apart, tmp_path)
    assert others == [SILENT] * 2
    aside = tmp_path / "1" / ".step-00000001"
    assert told.startswith(f"RunError: Process 1: {aside} is not seen here. All processes need the run folder")


def corpus_of(folder: Path, rank: int) -> RunConfig:
    """A run that reads the text which this process alone has."""
    return make_config(folder / f"poems-{rank}.jsonl", "train.batch_size=12", "train.device=cpu")


def begin(world: World, folder: Path, *, on_disks: bool = False) -> str:
    """A run whose folder each process looks for on a disk of its own, or not."""
    heard = world.agree

    def agree(value: T) -> T:
        agreed = heard(value)
        return str(folder / "elsewhere") if isinstance(agreed, str) else agreed  # type: ignore[return-value]  # it is one

    if on_disks and world.rank == 1:
        world.agree = agree  # type: ignore[method-assign]
    try:
        return outcome(
            lambda: (
                Trainer(
                    corpus_of(folder, world.rank), out=folder / "run", sinks=lambda _: SinkSet([]), world=world
                ).folder.root.name
            )
        )
    finally:
        vars(world).pop("agree", None)


def test_a_run_folder_that_not_all_see_is_refused(pool: Pool, tmp_path: Path) -> None:
    for rank in (0, 1):
        write_corpus(tmp_path / f"poems-{rank}.jsonl")
    told, other = pool.run(2, begin, tmp_path, on_disks=True)
    assert other == SILENT
    assert told.startswith(f"RunError: Process 1: {tmp_path}/elsewhere/config.json is not seen here.")


def test_other_data_in_one_process_is_refused_before_there_is_a_folder(pool: Pool, tmp_path: Path) -> None:
    for rank in (0, 1):
        path = write_corpus(tmp_path / f"poems-{rank}.jsonl")
    assert pool.run(2, begin, tmp_path) == ["returned run"] * 2, "equal files under two names are the same"
    (tmp_path / "run").rename(tmp_path / "before")
    path.write_text(path.read_text("utf-8").replace("word3 ", "word4 "), "utf-8")
    told, other = pool.run(2, begin, tmp_path)
    assert told.startswith("RunError: Process 1 reads other data than process 0.")
    assert other == SILENT
    assert not (tmp_path / "run").exists()


# What all lack.


def lack_memory(world: World, folder: Path) -> str:
    """In the third step."""
    honest = TrainStep.__call__

    def step(self: TrainStep, number: int, batches: Sequence[Batch]) -> StepResult:
        if number == 2:
            raise MemoryError
        return honest(self, number, batches)

    config = corpus_of(folder, 0)
    with mock.patch.object(TrainStep, "__call__", step):
        trainer = Trainer(config, out=folder / "run", sinks=lambda _: SinkSet([]), world=world)
        return outcome(trainer.fit)


def test_memory_that_all_lack_is_told_once(pool: Pool, tmp_path: Path) -> None:
    write_corpus(tmp_path / "poems-0.jsonl")
    told, other = pool.run(2, lack_memory, tmp_path)
    assert told.startswith("RunError: Out of memory at step 3, in a micro-batch of 6 sequences.")
    assert told.endswith(f"`colakit train --resume {tmp_path}/run --nproc 2` goes on after step 2.")
    assert other == SILENT


def refuse(*_: object) -> None:
    raise RuntimeError("no such compiler\nand more")


def compiled_step(world: World) -> str:
    config = tiny_config("cola", "parallel.strategy=ddp")
    honest = torch.compile
    with mock.patch.object(torch, "compile", partial(honest, backend=refuse)):
        machine = replace(CPU, compiles=True)
        step = TrainStep.of(config, build_model(config, machine).train(), machine, world)
        return outcome(lambda: go(step, config, range(1)))


def test_a_compiler_that_fails_is_told_once_with_its_reason(pool: Pool) -> None:
    told, other = pool.run(2, compiled_step)
    pool.close()  # what torch.compile imports changes how operations are dispatched
    assert told == (
        "RunError: torch.compile fails: no such compiler. See `colakit doctor`, or add --set train.compile=false."
    )
    assert other == SILENT
