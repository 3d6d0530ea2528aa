"""How far reading has come, in bytes of the files as they lie on disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO


class Meter:
    """Bytes read of all there are; a file counts as far as its reader has come."""

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        """Of all files; None where that is not known."""
        self._finished = 0
        self._file: IO[bytes] | None = None

    @contextmanager
    def reading(self, file: IO[bytes]) -> Iterator[None]:
        """While `file`, uncompressed or not, is read from its beginning."""
        self._file = file
        try:
            yield
        finally:
            self._finished, self._file = self.done, None

    def pass_over(self, n_bytes: int) -> None:
        """Count what is read by other means, or need not be read."""
        self._finished += n_bytes

    @property
    def done(self) -> int:
        """Bytes read so far."""
        finished, file = self._finished, self._file
        try:
            return finished + (0 if file is None else file.tell())
        except (ValueError, OSError):  # closed just now, by the thread that reads it
            return self._finished
