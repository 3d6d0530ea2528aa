"""Hashes of files, remembered for large ones as long as size and times stay, so that a second look costs nothing."""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from colakit.data.cache import write_json
from colakit.errors import DataError

_WORTH_REMEMBERING = 2**20
_SETTLED_NS = 2 * 10**9
"""A file changed later than this ago may change again within the clock's step, and look the same."""


def file_digest(path: Path, cache: Path) -> str:
    """A hash of the bytes of `path`. Raises DataError where it cannot be read."""
    try:
        status = path.stat()
        record = cache / "digests" / hashlib.blake2b(os.fsencode(path.resolve()), digest_size=16).hexdigest()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        is_large = status.st_size >= _WORTH_REMEMBERING
        if is_large and (known := _recall(record, stamp)):
            return known
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    if is_large and time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
        _remember(record, stamp, digest)
    return digest


def _recall(record: Path, stamp: list[int]) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(record.read_text("utf-8"))
        return str(known["digest"]) if known["stamp"] == stamp else None
    return None


def _remember(record: Path, stamp: list[int], digest: str) -> None:
    """Write what saves time later; a cache that cannot be written is reported by what needs it."""
    with suppress(OSError):
        write_json(record, {"stamp": stamp, "digest": digest})
