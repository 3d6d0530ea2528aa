"""The checkpoints of a run: a folder each, made aside, renamed once it is whole, verified before anything is read.

``manifest.json``, written last, names every other file with its size and hash. What is cut short never bears the name
of a checkpoint, and what is changed afterwards is told by the name of its file.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from colakit.errors import CheckpointError

MANIFEST = "manifest.json"
MODEL_FILE = "model.safetensors"
MODEL_FOLDER, OPTIMIZER_FOLDER = "model", "optimizer"
"""In a checkpoint that several processes wrote: a file of each, in place of one of all."""
SCHEMA_VERSION = 1
"""Rises when what a checkpoint holds changes its meaning."""

_STEP = re.compile(r"step-(\d{8,})")
_ABANDONED = "abandoned-"


def step_of(path: Path) -> int | None:
    """The step that a folder's name says it is the checkpoint of; None where it is none."""
    found = _STEP.fullmatch(path.name)
    return int(found[1]) if found else None


class Checkpoints:
    """The checkpoints below `folder`, which need not exist. One process writes them at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> list[Path]:
        """Every checkpoint, by its step. Raises CheckpointError where the folder cannot be read."""
        try:
            folders = [path for path in self.folder.iterdir() if path.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be read: {error.strerror}. Check its permissions.") from error
        found = {step: path for path in folders if (step := step_of(path)) is not None}
        return [found[step] for step in sorted(found)]

    def path_of(self, step: int) -> Path:
        """Where the checkpoint of `step` is, if there is one."""
        return self.folder / f"step-{step:08}"

    def newest(self) -> Path | None:
        """The one of the highest step."""
        return next(reversed(self.all()), None)

    def newest_whole(self, before: int) -> Path | None:
        """The newest of a lower step that is as it was written."""
        for path in reversed(self.all()):
            if (step_of(path) or 0) < before:
                with suppress(CheckpointError):
                    verify(path)
                    return path
        return None

    def aside_of(self, step: int) -> Path:
        """Where the checkpoint of `step` is made."""
        return self.folder / f".{self.path_of(step).name}"

    def begin(self, step: int) -> Path:
        """An empty folder to fill, which is none of the checkpoints yet. Raises OSError."""
        aside = self.aside_of(step)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        return aside

    def publish(self, aside: Path) -> Path:
        """Write to disk what is in `aside`, with its manifest, and make it a checkpoint. Raises OSError."""
        _seal(aside)
        path = aside.with_name(aside.name.removeprefix("."))
        aside.rename(path)
        _sync(self.folder)
        _sync(self.folder.parent)
        return path

    def remove_all_but(self, kept: Collection[int]) -> None:
        """Remove the checkpoints of all other steps; what cannot be removed stays."""
        for path in self.all():
            if step_of(path) not in kept:
                # Renamed first, so that a kill leaves no half of one under its name.
                with suppress(OSError):
                    shutil.rmtree(path.rename(path.with_name(f".{path.name}.removed")), ignore_errors=True)

    def abandon_behind(self, step: int) -> list[Path]:
        """Give those of later steps another name, returned: a run that goes on from `step` makes its own."""
        renamed = []
        for path in self.all():
            if (step_of(path) or 0) > step:
                free = (path.with_name(f"{_ABANDONED}{path.name}{f'-{n}' if n else ''}") for n in range(1000))
                renamed.append(path.rename(next(name for name in free if not name.exists())))
        return renamed

    def sweep(self) -> None:
        """Remove what a killed process left behind."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)


def verify(path: Path) -> None:
    """Raise CheckpointError, naming the file, where a checkpoint is not what was written."""
    for name, (size, digest) in _read_manifest(path / MANIFEST).items():
        file = path / name
        try:
            n_bytes = file.stat().st_size
            if n_bytes != size:
                raise CheckpointError(f"{file} is damaged: {n_bytes:,} bytes, not the {size:,} written.")
            if _digest(file) != digest:
                raise CheckpointError(f"{file} is damaged: its content is not what was written.")
        except OSError as error:
            raise CheckpointError(f"{file} is missing or cannot be read ({error.strerror}).") from error


def _read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    try:
        content = json.loads(path.read_text("utf-8"))
        schema = content["schema"]
        if schema == SCHEMA_VERSION:
            if content["blake2b"] != _digest_of(content["files"]):
                raise ValueError("it is not what was written")
            return {name: (int(each["bytes"]), str(each["blake2b"])) for name, each in content["files"].items()}
    except OSError as error:
        raise CheckpointError(f"{path} is missing or cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}).") from error
    raise CheckpointError(
        f"{path.parent} is a checkpoint of schema {schema}, and this colakit reads schema {SCHEMA_VERSION}. Resume it "
        "with the version of colakit that its environment.json names."
    )


def _seal(folder: Path) -> None:
    files = {}
    for path in sorted(folder.rglob("*")):
        _sync(path)
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            files[name] = {"bytes": path.stat().st_size, "blake2b": _digest(path)}
    manifest = folder / MANIFEST
    content = {"schema": SCHEMA_VERSION, "blake2b": _digest_of(files), "files": files}
    manifest.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _sync(manifest)
    _sync(folder)


def _digest_of(files: dict[str, Any]) -> str:  # Any: JSON values
    return hashlib.blake2b(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _sync(path: Path) -> None:
    """Have the disk hold what was written."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no such call for folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
