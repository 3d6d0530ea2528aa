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
        """Bytes read so far. To be asked by the thread that reads: from elsewhere, a file may be closing."""
        return self._finished + (0 if self._file is None else self._file.tell())
