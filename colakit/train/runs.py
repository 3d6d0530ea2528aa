"""What a run folder holds, and where: the names are here and nowhere else.

A folder is made only when everything that can be checked beforehand has been, so that a mistake leaves none behind.
"""

import json
import os
import shlex
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from colakit.checkpoint.contents import data_bytes, weight_files
from colakit.checkpoint.folders import MODEL_FILE, Checkpoints
from colakit.config.load import from_saved
from colakit.config.schema import RunConfig
from colakit.data.cache import write_whole
from colakit.errors import CheckpointError, RunError
from colakit.records.base import to_json
from colakit.train.lock import RunLock

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
STATE_FILE = "state.json"
"""Of a checkpoint: what the next step depends on. It is the same whenever and wherever it is reached."""
TOTALS_FILE = "totals.json"
"""Of a checkpoint: what the run has come to."""
ORIGIN_FILE = "colakit.json"
"""Of an exported model, in place of a run's files: its configuration, its steps, the data it saw."""

T = TypeVar("T")


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, below `root`."""

    root: Path
    there: Path | None = None
    """The nearest folder that was there before the run: `root` itself, or one above it."""

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / CONFIG_FILE

    @property
    def environment(self) -> Path:
        """Versions, machine and git commit."""
        return self.root / ENVIRONMENT_FILE

    @property
    def data(self) -> Path:
        """Fingerprint and sizes of the data."""
        return self.root / "data.json"

    @property
    def metrics(self) -> Path:
        """One JSON record a line."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def tokenizer(self) -> Path:
        """A tokenizer folder that `transformers` loads too."""
        return self.root / "tokenizer"

    @property
    def checkpoints(self) -> Path:
        """A folder for each checkpoint."""
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The trained model, once the run has ended."""
        return self.root / MODEL_FILE

    @property
    def summary(self) -> Path:
        """What the run reached."""
        return self.root / "summary.json"

    @cached_property
    def lock(self) -> RunLock:
        """Held by the process that trains here."""
        return RunLock(self.root)

    def discard(self) -> None:
        """Remove everything in the folder, and the folders that were made for it."""
        self.lock.release()
        for entry in self.root.iterdir() if self.root.is_dir() else ():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        root = self.root.absolute()
        for folder in (root, *root.parents):
            if folder == self.there or any(folder.iterdir()):
                break
            folder.rmdir()

    def load_config(self) -> RunConfig:
        """The run's configuration, or where that is damaged, its newest checkpoint's.

        Raises CheckpointError where `root` is no run folder.
        """
        checkpoints = reversed(Checkpoints(self.checkpoints).all())
        for path in (self.config, *(checkpoint / self.config.name for checkpoint in checkpoints)):
            with suppress(OSError, ValueError):
                return from_saved(json.loads(path.read_text("utf-8")))
        found = sorted(self._runs_nearby(), key=lambda run: run.stat().st_mtime)
        newest = f"; the newest finished one here is {found[-1]}" if found else ""
        raise CheckpointError(
            f"{self.root}: no run folder, since {self.config.name} is missing or unreadable. "
            f"Give the folder that `colakit train` printed{newest}."
        )

    def has_model_of(self, checkpoint: Path) -> bool:
        """Whether the model of `checkpoint` lies where every reader looks for it, as far as its size tells."""
        try:
            return data_bytes([self.model]) == data_bytes(weight_files(checkpoint))
        except OSError:
            return False

    def _runs_nearby(self) -> list[Path]:
        """Finished runs below `root`, or below ``runs``."""
        return [path.parent for folder in (self.root, Path("runs")) for path in folder.glob(f"*/{self.summary.name}")]


def resume_command(path: Path, nproc: int = 1, machines: int = 1) -> str:
    """What is typed to go on with a run or a checkpoint in so many processes; on each of several machines."""
    command = f"colakit train --resume {shlex.quote(str(path))}"
    if machines > 1:
        return f"torchrun … -m {command}"
    return f"{command} --nproc {nproc}" if nproc > 1 else command


def processes_of(checkpoint: Path | None) -> int:
    """How many processes wrote it; 1 where it does not tell, or there is none."""
    if checkpoint is not None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads((checkpoint / STATE_FILE).read_text("utf-8"))["machine"]["processes"])
    return 1


def plan_run_folder(out: Path | None, preset: str) -> Path:
    """The folder a run will use: `out`, or ``runs/<preset>-<time>``. Raises RunError where it could not be made."""
    root = out if out is not None else _unused(Path("runs") / f"{preset}-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        _check_empty(root)
        ancestor = _nearest_existing(root)
    except OSError as error:
        raise RunError(f"{root}: {error.strerror}. Give another --out.") from None
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK):
        raise RunError(f"{root}: {ancestor} is not a folder that can be written to. Give another --out.")
    return root


def _nearest_existing(path: Path) -> Path:
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def _check_empty(root: Path) -> None:
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        newest = Checkpoints(RunFolder(root).checkpoints).newest()
        command = resume_command(root, processes_of(newest))
        resume = f" To go on with that run: `{command}`." if newest is not None else ""
        raise RunError(
            f"{root}: exists and is not an empty folder. Give another --out; nothing was overwritten.{resume}"
        )


def _unused(root: Path) -> Path:
    candidates = (root.with_name(f"{root.name}-{n}") if n else root for n in range(1000))
    return next(c for c in candidates if not c.exists())


def create_run(
    out: Path | None,
    config: RunConfig,
    data: dict[str, Any],  # Any: JSON values
    sinks: Callable[[RunFolder], T],
) -> tuple[RunFolder, T]:
    """Make the run's folder with configuration, environment and data description, and the sinks in it.

    Raises RunError where that fails; what was made is removed again.
    """
    folder = _claim(out, config.preset)
    try:
        write_json(folder.config, config.model_dump())
        from colakit.host import describe_machine  # with torch, which listing runs does without

        write_json(folder.environment, describe_machine().to_dict())
        write_json(folder.data, data)
        return folder, sinks(folder)
    except BaseException as error:
        folder.discard()
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or error
        raise RunError(f"{folder.root}: cannot be written ({reason}). Give another --out.") from error


def _claim(out: Path | None, preset: str) -> RunFolder:
    """Make the folder for one run alone: of two that start at once, one is refused, or gets the next free name."""
    while True:
        root = plan_run_folder(out, preset)
        folder = RunFolder(root, _nearest_existing(root))
        try:
            root.mkdir(parents=True, exist_ok=out is not None)
            folder.config.touch(exist_ok=False)
        except FileExistsError:
            if out is not None:
                raise RunError(f"{root}: another run has taken it. Give another --out.") from None
            continue
        except OSError as error:
            folder.discard()
            raise RunError(f"{root}: cannot be made ({error.strerror}). Give another --out.") from None
        try:
            folder.lock.acquire()
        except RunError:
            folder.discard()
            raise
        return folder


def write_json(path: Path, value: dict[str, Any]) -> None:  # Any: JSON values
    """Write `value` indented; the file appears whole, on disk, or not at all."""
    write_whole(path, lambda partial: partial.write_text(to_json(value, indent=2) + "\n", encoding="utf-8"))
