"""Which local files ``data.path`` means: a file, a folder, or a glob. Reading them is `lines` and `tables`."""

import difflib
import glob
import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from colakit.data.lines import looks_like_text
from colakit.data.paths import user_path
from colakit.data.walk import walk
from colakit.errors import DataError

ENDINGS = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_SUPPORTED = f"colakit reads {', '.join(ENDINGS[:-1])} and {ENDINGS[-1]}"
# Text to the eye, but made of records: as plain text, their syntax would be learned along.
_RECORDS = frozenset({".csv", ".json", ".ndjson", ".tsv"})


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to read. `name` is its path below what was asked for, the same on every machine."""

    path: Path
    name: str
    ending: str
    """The member of `ENDINGS` that says how it is read."""
    n_bytes: int
    is_one_of_many: bool = True
    """False for the file that the user named itself."""


def find_files(pattern: str) -> list[SourceFile]:
    """The files that `pattern` names, sorted by name: one of any ending, of a folder or glob those of `ENDINGS`.

    Raises DataError where nothing is there, or nothing that can be read.
    """
    path = user_path(pattern, "data.path")
    try:
        if path.is_dir():
            return _supported(walk(path), path, asked=f"the folder {path}")
        if path.exists():
            return [_named(path)]
        if glob.has_magic(pattern):
            return _matches(path)
        raise DataError(f"data.path = {pattern!r}: there is no such file or folder.{_did_you_mean(path)}")
    except OSError as error:
        raise DataError(
            f"{error.filename or path} cannot be read: {error.strerror}. Check the path and its permissions."
        ) from error


def _named(path: Path) -> SourceFile:
    """The file that the user named itself: plain text, whatever its ending, where no other reader is meant."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is a pipe or a device, which cannot be read again. Write its text into a file first.")
    ending = _ending(path)
    if ending is None and path.suffix.lower() in _RECORDS:
        raise DataError(
            f"{path}: colakit does not read {path.suffix}, whose syntax would be learned along. {_SUPPORTED}; rename "
            "it to .txt if that is what you want."
        )
    if ending is None and not looks_like_text(path):
        raise DataError(f"{path} is not plain text. {_SUPPORTED}.")
    return SourceFile(path, _name(path, path.parent), ending or ".txt", status.st_size, is_one_of_many=False)


def _matches(pattern: Path) -> list[SourceFile]:
    level = next(level for level, part in enumerate(pattern.parts) if glob.has_magic(part))
    folder = Path(*pattern.parts[:level])
    paths = walk(folder, pattern.parts[level:])
    if not paths:
        raise DataError(
            f"data.path = {str(pattern)!r}: no file matches. ** matches folders at any depth; quote a glob so that the "
            "shell leaves it alone."
        )
    return _supported(paths, folder, asked=f"what matches {pattern}")


def _supported(paths: Iterable[Path], root: Path, *, asked: str) -> list[SourceFile]:
    files: list[SourceFile] = []
    others: Counter[str] = Counter()
    for path in paths:
        ending = _ending(path)
        if ending is None:
            others[path.suffix or "no ending"] += 1
        elif stat.S_ISREG((status := path.stat()).st_mode):
            files.append(SourceFile(path, _name(path, root), ending, status.st_size))
        else:
            others["pipe or device"] += 1
    if not files:
        held = ", ".join(f"{count} × {ending}" for ending, count in others.most_common(4)) or "no file at all"
        raise DataError(
            f"data.path: there is no supported file in {asked} (found: {held}). {_SUPPORTED}; "
            "rename plain text to .txt."
        )
    return sorted(files, key=lambda file: file.name)


def _name(path: Path, root: Path) -> str:
    name = path.relative_to(root).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the file name {os.fsencode(name)!r} in {root} is not UTF-8. Rename the file.") from error
    return name


def _ending(path: Path) -> str | None:
    return next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)


def _did_you_mean(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f" Not even its folder {parent} exists."
    close = difflib.get_close_matches(path.name, [entry.name for entry in parent.iterdir()], n=3)
    if close:
        return f" Did you mean {' or '.join(str(parent / name) for name in close)}?"
    return f" Its folder {parent} exists, but holds nothing of a similar name."
