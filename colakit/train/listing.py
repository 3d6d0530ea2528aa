"""The runs below a folder: how far each has come, and how to go on with it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from colakit.checkpoint.folders import MANIFEST, Checkpoints, step_of
from colakit.errors import ColakitError, RunError
from colakit.records.run import RunListing
from colakit.train.metrics import last_step
from colakit.train.runs import RunFolder, processes_of, resume_command

State = Literal["running", "finished", "interrupted"]


def list_runs(folder: Path) -> list[RunListing]:
    """Every run in `folder`, or `folder` itself where it is one, the latest last.

    Raises RunError where there is no such folder.
    """
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder. Give the one that your runs are in; `colakit train` makes runs/.")
    below = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    below.sort(key=lambda path: path.stat().st_mtime)
    own = RunFolder(folder)
    runs = [own] if own.config.is_file() or own.checkpoints.is_dir() else map(RunFolder, below)
    return [listing for run in runs for listing in _listed(run)]


def _listed(run: RunFolder) -> Iterator[RunListing]:
    if (run.root / MANIFEST).is_file():
        return  # a checkpoint
    try:
        config = run.load_config()
    except ColakitError:
        return  # some other program's folder
    newest = Checkpoints(run.checkpoints).newest()
    steps = (step_of(newest) or 0) if newest is not None else 0
    is_at_end = newest is not None and steps >= config.train.max_steps
    is_finished = newest is not None and is_at_end and run.summary.is_file() and run.has_model_of(newest)
    is_running = run.lock.is_held()
    # A running one is where its records are; another has come as far as it was saved.
    step, loss = last_step(run.metrics, up_to=None if is_running else steps)
    state: State = "running" if is_running else "finished" if is_finished else "interrupted"
    yield RunListing(
        folder=str(run.root),
        preset=config.preset,
        steps=step if is_running else steps,
        max_steps=config.train.max_steps,
        last_loss=loss,
        state=state,
        resume=resume_command(run.root, processes_of(newest)) if state == "interrupted" and steps else None,
    )
