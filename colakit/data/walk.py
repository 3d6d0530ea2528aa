"""The files below a folder: one walk for a folder and for a glob, so that both find the same."""

import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

EVERYTHING = ("**", "*")


def walk(folder: Path, pattern: Sequence[str] = EVERYTHING) -> list[Path]:
    """What is no folder below `folder` and fits `pattern`, each file once; hidden files and folders are left out.

    `pattern` has one part for each level, as a glob has; ``**`` stands for any number of levels. Symbolic links are
    followed, also where they lead back up: no folder is visited twice. Raises OSError for a folder that is unreadable.
    """
    parts = (*pattern, "*") if pattern[-1] == "**" else tuple(pattern)
    found: dict[str, Path] = {}
    for path in _walk(folder, parts, set()):
        found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _walk(folder: Path, pattern: tuple[str, ...], visited: set[tuple[str, tuple[str, ...]]]) -> Iterator[Path]:
    visit = (os.path.realpath(folder), pattern)
    if visit in visited:
        return
    visited.add(visit)
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        yield from _walk(folder, rest, visited)
    for entry in _entries(folder):
        if first == "**":
            if entry.is_dir():
                yield from _walk(Path(entry.path), pattern, visited)
        elif fnmatchcase(entry.name, first):
            if rest and entry.is_dir():
                yield from _walk(Path(entry.path), rest, visited)
            elif not rest and not entry.is_dir():
                yield Path(entry.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What `folder` holds, links last, so that a file reached in two ways keeps its own name."""
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(shown, key=lambda entry: (entry.is_symlink(), entry.name))
