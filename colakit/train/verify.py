"""``--verify-resume``: the proof, on the user's own configuration and machine, that a killed run resumes exactly.

Three processes train the first steps of the run: one undisturbed, one that is killed, and one that goes on from what
that one left. Model, data, batches and schedule are the run's own; there are fewer steps, and next to no evaluation.
"""

import json
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

from colakit.build import pick_machine
from colakit.checkpoint.folders import Checkpoints
from colakit.checkpoint.model_file import MODEL_FILE, OPTIMIZER_FILE
from colakit.config.load import from_saved
from colakit.config.schema import RunConfig
from colakit.data.prepare import prepare
from colakit.errors import ColakitError, RunError
from colakit.records.run import EvalRecord, ResumeProof, StepRecord
from colakit.train.resume import plan_resumption
from colakit.train.runs import STATE_FILE, RunFolder
from colakit.train.sinks import JsonlSink, SinkSet
from colakit.train.trainer import Trainer

_STEPS = 3
"""Before the kill, and behind it."""
_LOOK_S = 0.01


def verify_resume(config: RunConfig) -> ResumeProof:
    """Train in miniature, kill, resume, compare. Raises RunError where one of the processes fails."""
    started = time.perf_counter()
    steps = min(2 * _STEPS, config.train.max_steps)
    half = steps // 2
    if half == 0:
        raise RunError("A run of one step cannot be resumed. Set train.max_steps to 2 at least.")
    # The user's mistakes are told here, once; and the data is in the cache then.
    prepare(config.data, seq_len=config.model.seq_len, vocab_size=config.model.vocab_size)
    mini = _in_miniature(config, half)
    with _ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="colakit-verify-") as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        with _training(mini, whole, steps) as process:
            _wait(process, whole)
        with _training(mini, killed, steps) as victim:
            _kill_after(victim, killed, half)
        with _training(mini, killed, steps, resume=half) as process:
            _wait(process, killed)
        equal = compare(whole, killed, steps)
    return ResumeProof(
        preset=config.preset,
        device=str(pick_machine(config)),
        killed_after=half,
        steps=steps,
        **equal,
        seconds=time.perf_counter() - started,
    )


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends this process as Ctrl-C does: nothing is left behind."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    handler = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def compare(one: Path, other: Path, steps: int) -> dict[str, bool]:
    """What is equal in the checkpoints of `steps` of two run folders, byte for byte, and in the records up to there."""
    ends = [Checkpoints(RunFolder(root).checkpoints).path_of(steps) for root in (one, other)]
    files = {"weights": MODEL_FILE, "optimizer": OPTIMIZER_FILE, "state": STATE_FILE}
    equal = {what: (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes() for what, name in files.items()}
    return {**equal, "losses": _losses(RunFolder(one).metrics) == _losses(RunFolder(other).metrics)}


def _in_miniature(config: RunConfig, half: int) -> RunConfig:
    train = {
        "checkpoint_every": half,
        "checkpoint_every_min": None,
        "keep_last": 100,
        "eval_every": config.train.max_steps,
        "eval_tokens": 1,
        "sample_tokens": 0,
    }
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


@contextmanager
def _training(config: RunConfig, root: Path, steps: int, *, resume: int | None = None) -> Iterator[BaseProcess]:
    """A process that trains in `root` until after step `steps`, and lives no longer than the block."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_train, args=(config.model_dump_json(), str(root), steps, resume))
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which it inherits: Ctrl-C is this process's to handle
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _wait(process: BaseProcess, root: Path) -> None:
    process.join()
    if process.exitcode:
        raise _failure(process, root)


def _kill_after(process: BaseProcess, root: Path, step: int) -> None:
    """Kill without warning once there is a checkpoint of `step`, in the midst of whatever comes next."""
    checkpoint = Checkpoints(root / "checkpoints").path_of(step)
    while process.is_alive() and not checkpoint.is_dir():
        time.sleep(_LOOK_S)
    process.kill()
    process.join()
    if checkpoint.is_dir():
        return
    if process.exitcode == 0:
        raise RunError(
            "There is nothing to compare: no checkpoint was taken, since every update was left out. Lower optim.lr."
        )
    raise _failure(process, root)


def _failure(process: BaseProcess, root: Path) -> RunError:
    try:
        return RunError(f"A run of the proof ended early. {_message_of(root).read_text('utf-8')}")
    except FileNotFoundError:  # a fault of ours, with its traceback, or the system's
        return RunError(f"A process of the proof failed (exit code {process.exitcode}); what it said is above.")


def _message_of(root: Path) -> Path:
    """Where a process leaves what its user should read."""
    return root.with_suffix(".error")


class _StopAt:
    """A sink that ends the run behind one step, as a signal does."""

    def __init__(self, step: int) -> None:
        self._step = step

    def step(self, record: StepRecord) -> None:
        """Send the signal."""
        if record.step == self._step:
            os.kill(os.getpid(), signal.SIGTERM)

    def evaluation(self, record: EvalRecord) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _train(config_json: str, root: str, steps: int, resume: int | None) -> None:
    """What a process of the proof does."""
    logging.getLogger("colakit").setLevel(logging.ERROR)  # the signal that ends it is nobody's
    try:
        _train_until(from_saved(json.loads(config_json)), Path(root), steps, resume)
    except ColakitError as error:
        _message_of(Path(root)).write_text(str(error), encoding="utf-8")
        sys.exit(2)


def _train_until(config: RunConfig, folder: Path, steps: int, resume: int | None) -> None:
    resumption = None
    if resume is not None:
        resumption = plan_resumption(Checkpoints(folder / "checkpoints").path_of(resume), lambda stored: stored)
    trainer = Trainer(
        config,
        out=folder,
        sinks=lambda run: SinkSet([JsonlSink(run.metrics), _StopAt(steps)]),
        resume=resumption,
    )
    trainer.fit()


def _losses(path: Path) -> Sequence[tuple[int, float, float]]:
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [(r["step"], r["loss"], r["grad_norm"]) for r in records if r["kind"] == "step"]
