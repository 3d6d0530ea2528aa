"""The reader of ``data.source = "files"``: local files, each by the reader of its kind."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from colakit.data.digests import file_digest
from colakit.data.document import Document, OnBad
from colakit.data.files import SourceFile, find_files
from colakit.data.lines import read_jsonl, read_txt
from colakit.data.meter import Meter
from colakit.data.tables import read_parquet
from colakit.errors import DataError

READER_VERSION = 2
"""Part of the identity: raise it when the same files would give other documents."""


class Files:
    """What ``data.path`` names. The list of files is that of the latest `identity`: what is added later is not read."""

    def __init__(self, pattern: str, text_field: str, cache: Path) -> None:
        self._pattern = pattern
        self._text_field = text_field
        self._cache = cache
        self._files: list[SourceFile] = []
        self._stamps: dict[Path, tuple[int, ...]] = {}

    @property
    def is_replayable(self) -> bool:
        """Always: `check_unchanged` tells where it is not."""
        return True

    def check(self) -> None:
        """Raise DataError where there is no such file, or none that can be read."""
        find_files(self._pattern)

    def identity(self) -> str:
        """Of the contents, in the order of the names, and how each is read; not of where they lie."""
        self._files = find_files(self._pattern)
        self._stamps = {file.path: _stamp(file.path) for file in self._files}
        return "\n".join([f"files {READER_VERSION}", *map(self._identity_of, self._files)])

    def _identity_of(self, file: SourceFile) -> str:
        reading = (_group(file) or "") if file.ending == ".txt" else self._text_field
        return f"{file.ending}\0{reading}\0{file_digest(file.path, self._cache)}"

    def check_unchanged(self) -> None:
        """Raise DataError where a file is not what `identity` saw."""
        for path, stamp in self._stamps.items():
            if _stamp(path) != stamp:
                raise DataError(f"{path} changed while it was being read. Wait until it is complete, then start again.")

    def meter(self) -> Meter:
        """A meter of the files' bytes."""
        return Meter(sum(file.n_bytes for file in self._listed()))

    def read(self, on_bad: OnBad, start: tuple[int, int], meter: Meter) -> Iterator[tuple[tuple[int, int], Document]]:
        """Documents from `start`, a file's number and how many of its documents to leave out.

        `on_bad` is told of the bad records behind them alone.
        """
        for number, file in enumerate(self._listed()):
            if number < start[0]:
                meter.pass_over(file.n_bytes)
                continue
            n_known = start[1] if number == start[0] else 0
            for n_read, document in self._behind(n_known, file, on_bad, meter):
                yield (number, n_read), document

    def _behind(self, n_known: int, file: SourceFile, on_bad: OnBad, meter: Meter) -> Iterator[tuple[int, Document]]:
        """The documents of a file behind the first `n_known`, each with how many it makes."""
        n_read = 0

        def on_new(error: DataError) -> None:
            if n_read >= n_known:
                on_bad(error)

        for document in self._read_file(file, on_new, meter):
            n_read += 1
            if n_read > n_known:
                yield n_read, document

    def _listed(self) -> list[SourceFile]:
        self._files = self._files or find_files(self._pattern)
        return self._files

    def _read_file(self, file: SourceFile, on_bad: OnBad, meter: Meter) -> Iterator[Document]:
        if file.ending == ".txt":
            yield from read_txt(file.path, _group(file), on_bad, meter)
        elif file.ending == ".parquet":
            yield from read_parquet(file.path, self._text_field, on_bad)
            meter.pass_over(file.n_bytes)
        else:
            yield from read_jsonl(file.path, self._text_field, on_bad, meter)


def _group(file: SourceFile) -> str | None:
    """The group that a .txt is held out in: one of many in its own, by its name; none for one that is cut."""
    return quote(file.name) if file.is_one_of_many else None  # quoted, since a "#" would end it


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()  # gone
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
