"""From a `SourceConfig` to a stream of documents: which reader a source needs, what may be read, what is taken out.

A reader yields raw documents with their positions, so that reading can start again behind any of them.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeAlias

from colakit.config.schema import SINGLE, DataConfig, SourceConfig
from colakit.data.cleaning import has_words, remove_crawl_markers, remove_urls
from colakit.data.corpus import StandardLibrary
from colakit.data.document import Document, OnBad, fail
from colakit.data.hub_reader import HubReader
from colakit.data.local import Files
from colakit.data.meter import Meter
from colakit.errors import DataError

Position: TypeAlias = tuple[int, int]
"""A file, and how many of its documents have been read."""

START: Position = (0, 0)
END: Position = (sys.maxsize, 0)
"""Behind all documents, and behind the bad and short ones that follow the last."""
MOST_LISTED = 1000


class Reader(Protocol):
    """One kind of source."""

    @property
    def is_replayable(self) -> bool:
        """Whether `identity` pins what `read` yields."""

    def check(self) -> None:
        """Raise the DataError that reading would begin with; nothing is read."""

    def identity(self) -> str:
        """Equal for equal documents: a hash, or a name pinned to a revision."""

    def check_unchanged(self) -> None:
        """Raise DataError where what was read is no longer what `identity` told of."""

    def meter(self) -> Meter:
        """A new meter of what there is to read."""

    def read(self, on_bad: OnBad, start: Position, meter: Meter) -> Iterator[tuple[Position, Document]]:
        """Documents from `start` on, each with the position behind it; none is blank."""


@dataclass
class Tally:
    """What one pass left out, apart from documents of other parts."""

    short: int = 0
    """Documents of fewer than ``data.min_words`` words."""
    n_bad: int = 0
    """Records that could not be read."""
    bad: list[str] = field(default_factory=list)
    """The messages of the first `MOST_LISTED` of them."""

    n_bytes: int = 0
    """Of the texts that were read and not left out."""

    def add_bad(self, error: DataError) -> None:
        """Count and list a record that could not be read."""
        self.n_bad += 1
        if len(self.bad) < MOST_LISTED:
            self.bad.append(str(error))


class Source:
    """One source of a run: its documents, cleaned and chosen as configured, in a fixed order."""

    def __init__(self, name: str, config: SourceConfig, data: DataConfig, cache: Path) -> None:
        self.name = name
        self.config = config
        self._data = data
        self._reader = _reader(config, data, cache)

    @property
    def label(self) -> str:
        """How messages name it: by what it reads, one of several by its name too."""
        reads = self.config.path or self.config.dataset or self.config.source
        return reads if self.name == SINGLE else f"{self.name} ({reads})"

    def check(self) -> None:
        """Raise the DataError that reading would begin with, at the price of listing files: nothing is read."""
        try:
            self._reader.check()
        except DataError as error:
            raise error if self.name == SINGLE else DataError(f"{self.name}: {error}") from error

    def identity(self) -> str:
        """Equal for equal documents, cleaning and choice included."""
        data = self._data
        cleaning = (data.remove_urls, data.remove_crawl_markers, data.min_words)
        return f"{self._reader.identity()} {(*cleaning, self.config.part, self.config.max_mb)}"

    @property
    def is_replayable(self) -> bool:
        """Whether it can be read again exactly, from any position; known once its identity has been asked for."""
        return self._reader.is_replayable

    def check_unchanged(self) -> None:
        """Raise DataError where the source has changed since its identity was asked for."""
        self._reader.check_unchanged()

    def meter(self) -> Meter:
        """A new meter of what there is to read."""
        return self._reader.meter()

    def documents(
        self, tally: Tally, start: Position = START, meter: Meter | None = None
    ) -> Iterator[tuple[Position, Document]]:
        """Documents from `start` on, each with the position behind it. What is left out is added to `tally`.

        Raises DataError naming file and line of the first fault, unless bad records are to be skipped.
        """
        most = float("inf") if self.config.max_mb is None else 1e6 * self.config.max_mb
        if start == END or tally.n_bytes >= most:
            return
        data = self._data
        on_bad = fail if data.on_bad_record == "fail" else tally.add_bad
        for position, document in self._reader.read(on_bad, start, meter or Meter()):
            text = _clean(document.text, data)
            if not has_words(text, data.min_words):
                tally.short += 1
            elif text.strip() and _is_of_part(document, self.config.part):
                tally.n_bytes += len(text.encode())
                yield position, replace(document, text=text)
                if tally.n_bytes >= most:
                    return


def _reader(config: SourceConfig, data: DataConfig, cache: Path) -> Reader:
    if config.source == "stdlib":
        return StandardLibrary()
    if config.source == "files":
        if not config.path:
            raise DataError("data.source = 'files' needs data.path. Give --data PATH.")
        return Files(config.path, config.text_field, cache)
    return HubReader(config, cache)


def _clean(text: str, config: DataConfig) -> str:
    if config.remove_urls:
        text = remove_urls(text)
    return remove_crawl_markers(text) if config.remove_crawl_markers else text


def _is_of_part(document: Document, part: str | None) -> bool:
    """By group, from bits that the held-out split, which looks at the highest ones, does not see."""
    if part is None:
        return True
    i, _, n = part.partition("/")
    return document.hashes()[0] % 2**32 % int(n) == int(i) - 1


def no_text(source: Source, tally: Tally, config: DataConfig) -> DataError:
    """The error of a source that yielded no document."""
    if tally.bad:
        few = f"no record that can be read; the first of {tally.n_bad}: {tally.bad[0]}"
    elif tally.short:
        few = f"no document of {config.min_words} words. Lower data.min_words"
    else:
        few = "no text, or blanks alone. Give another"
    return DataError(f"{source.label} holds {few.removesuffix('.')}.")
