"""Which local files ``data.path`` means: a file, a folder, or a glob. Reading them is `lines` and `tables`."""

import difflib
import glob
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from colakit.errors import DataError

ENDINGS = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
_SUPPORTED = f"colakit reads {', '.join(ENDINGS[:-1])} and {ENDINGS[-1]}"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to read. `name` is its path below what was asked for, the same on every machine."""

    path: Path
    name: str
    ending: str


def find_files(pattern: str) -> list[SourceFile]:
    """The supported files that `pattern` names, sorted by name. Hidden files and folders are left out.

    Raises DataError where nothing is there, or nothing that can be read.
    """
    path = Path(pattern).expanduser()
    try:
        if path.is_dir():
            return _supported(_walk(path), path, asked=f"the folder {path}")
        if path.exists():
            return _supported([path], path.parent, asked=str(path))
        if glob.has_magic(pattern):
            return _matches(str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    raise DataError(f"data.path = {pattern!r}: there is no such file or folder.{_did_you_mean(path)}")


def _matches(pattern: str) -> list[SourceFile]:
    found = [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207  Path.glob takes no absolute pattern
    files = [path for path in found if path.is_file()]
    if not files:
        raise DataError(
            f"data.path = {pattern!r}: no file matches. ** matches folders at any depth; quote a glob so that the "
            "shell leaves it alone."
        )
    root = Path(os.path.commonpath([path.parent for path in files]))
    return _supported(files, root, asked=f"what matches {pattern}")


def _walk(root: Path) -> Iterable[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (Path(folder) / name for name in names if not name.startswith("."))


def _supported(paths: Iterable[Path], root: Path, *, asked: str) -> list[SourceFile]:
    files: list[SourceFile] = []
    others: Counter[str] = Counter()
    for path in paths:
        ending = _ending(path)
        if ending is None:
            others[path.suffix or "no ending"] += 1
        else:
            files.append(SourceFile(path, path.relative_to(root).as_posix(), ending))
    if not files:
        held = ", ".join(f"{count} × {ending}" for ending, count in others.most_common(4)) or "no file at all"
        raise DataError(
            f"data.path: there is no supported file in {asked} (found: {held}). {_SUPPORTED}; "
            "rename plain text to .txt."
        )
    return sorted(files, key=lambda file: file.name)


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
