"""How far reading has come, in bytes of the files as they lie on disk."""

import os
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
        """While `file`, uncompressed or not, is read from its beginning to its end."""
        self._file, size = file, os.fstat(file.fileno()).st_size
        try:
            yield
        finally:
            self._finished, self._file = self._finished + size, None

    def pass_over(self, n_bytes: int) -> None:
        """Count what is read by other means, or need not be read."""
        self._finished += n_bytes

    @property
    def done(self) -> int:
        """Bytes read so far."""
        file = self._file
        return self._finished + (0 if file is None or file.closed else file.tell())
