"""A console for a long run: when whoever reads it has gone, it falls silent and the run goes on."""

import io
import os
import sys
from contextlib import suppress
from typing import TextIO

from rich.console import Console


class LastingStream(io.TextIOBase):
    """`stream` until writing to it fails, as with a closed terminal or a pipe that nobody reads; then nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute there
        """The stream's."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The stream's."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write to the stream, or to nobody."""
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """Let what waits in the stream's buffer, and all that follows, go nowhere: it would fail again at exit."""
        with suppress(OSError):  # a stream that is no file has no number
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def lasting_console(*, stderr: bool = False) -> Console:
    """On the standard output, or the standard error."""
    stream = LastingStream(sys.stderr if stderr else sys.stdout)
    return Console(file=stream, highlight=False, markup=False, emoji=False)  # type: ignore[arg-type]  # IO[str] is wider
