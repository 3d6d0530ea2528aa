"""Folders of the user's cache that are either whole or absent, whoever writes them and whenever that is cut short."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from colakit.config.schema import DataConfig
from colakit.data.paths import user_path
from colakit.errors import DataError

log = logging.getLogger(__name__)

_TEMP_PREFIX = ".unfinished-"
_ABANDONED_AFTER_S = 24 * 3600.0


def cache_root(config: DataConfig) -> Path:
    """``data.cache_dir``, or ``$XDG_CACHE_HOME/colakit``, or ``~/.cache/colakit``; it need not exist.

    Raises DataError where there is no home folder to put it in.
    """
    if config.cache_dir is not None:
        return user_path(config.cache_dir, "data.cache_dir")
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else user_path("~/.cache", "data.cache_dir")) / "colakit"


def key_of(*parts: str | float) -> str:
    """The name of what depends on `parts`."""
    return hashlib.blake2b("\n".join(str(part) for part in parts).encode(), digest_size=12).hexdigest()


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make the file `path`: under another name, then on disk, then renamed. Raises OSError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:  # Any: JSON values
    """Write a small file of the cache, whole at once. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda partial: partial.write_text(json.dumps(content), encoding="utf-8"))


def sweep(folder: Path, pattern: str) -> None:
    """Remove what killed processes left behind under such names; others may be doing the same."""
    for path in folder.glob(pattern):
        try:
            # A long write leaves the outer folder as it was: the newest of all that is inside tells whether it goes on.
            age_s = time.time() - max(part.stat().st_mtime for part in (path, *path.rglob("*")))
        except FileNotFoundError:
            continue  # its owner has just finished
        if age_s > _ABANDONED_AFTER_S:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what goes wrong while `folder`, a part of the cache, is read or written into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"the cache folder {folder.parent} cannot be read or written: {error.strerror or error}. Give it room and "
            "permissions, or choose another place with --set data.cache_dir=PATH."
        ) from error


@contextmanager
def alone(lock_file: Path, waiting: str) -> Iterator[None]:
    """Inside, no other process is, for the same `lock_file`; where one was before, `waiting` is logged."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info(waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def cached_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, filled by `write` if it is not there yet.

    `write` fills a temporary neighbour that is renamed when it is complete: a reader, a second process or a kill
    never meets half a folder. Raises DataError where the cache cannot be read or written.
    """
    with writing(folder):
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent, f"{_TEMP_PREFIX}*")
        with tempfile.TemporaryDirectory(prefix=_TEMP_PREFIX, dir=folder.parent, ignore_cleanup_errors=True) as temp:
            work = Path(temp) / folder.name
            work.mkdir()
            write(work)
            _publish(work, folder)
    return folder


def _publish(work: Path, folder: Path) -> None:
    try:
        work.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster, with the same content
            raise
