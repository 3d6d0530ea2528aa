"""Documents from a dataset of the Hugging Face hub, read at one commit of its repository.

What is downloaded, prepared and cached, and where, is the `datasets` library's own doing (HF_HOME, HF_DATASETS_CACHE).
"""

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from typing import Any

from colakit.config.schema import SourceConfig
from colakit.data import software_heritage
from colakit.data.document import Document, OnBad, id_of
from colakit.data.hub_find import BUGS, Source, explain, explained, find, listed, splits
from colakit.data.tables import NOT_UTF8, NULL, holds_text, values
from colakit.errors import DataError

_ROWS = 1000


class HubDataset:
    """One split of a dataset of the hub. The hub or the cache is asked at the first use; every method may raise
    DataError: for what the hub does not have or give out, or where it is out of reach and the cache holds nothing.

    ``data.dataset`` may name a revision behind the dataset: ``owner/name@revision``.
    """

    def __init__(self, config: SourceConfig) -> None:
        self._config = config
        self._name, _, self._asked = (config.dataset or "").partition("@")
        self.n_rows_read = 0
        """Rows that the latest `read` is past, with the document it yielded last: the `skip` that reads on."""

    def identity(self) -> str:
        """What will be read: dataset, commit, configuration, split and text field. Equal ones mean equal documents."""
        source, config = self._source, self._config
        return (
            f"hf://datasets/{self._name}@{source.revision}, configuration {source.builder.config.name}, "
            f"split {config.dataset_split}, text_field {config.text_field}"
        )

    @property
    def is_replayable(self) -> bool:
        """Whether the revision is a commit, so that what is read once can be read again."""
        return re.fullmatch(r"[0-9a-f]{40}", self._source.revision) is not None

    def read(self, on_bad: OnBad, *, skip: int = 0) -> Iterator[Document]:
        """Every document behind the first `skip` rows, whatever becomes of those; blank texts are left out.

        `on_bad` is told of a row whose text is null or broken, or is not in Software Heritage's archive.
        """
        self.n_rows_read = skip
        with closing(self._results(skip)) as results:
            for result in results:
                number, self.n_rows_read = self.n_rows_read, self.n_rows_read + 1
                if isinstance(result, DataError):
                    on_bad(DataError(f"{self._name}, row {number}: {result}"))
                elif result.text.strip():
                    yield result

    @cached_property
    def _source(self) -> Source:
        with explained(self._name):
            source = find(self._name, self._asked, self._config.dataset_config)
        held = splits(source.builder)
        if self._config.dataset_split not in held:
            raise DataError(
                f"the dataset {self._name}, configuration {source.builder.config.name}, has no split "
                f"{self._config.dataset_split!r}, but {listed(held)}. Name one with --set data.dataset_split=NAME."
            )
        return source

    def _results(self, skip: int) -> Generator[Document | DataError]:
        """One for each row behind `skip`."""
        with explained(self._name):
            tables, columns = self._open(skip)
        tables = _explained_tables(self._name, tables)
        field = self._config.text_field
        if field in columns:
            for table in tables:
                self._check_type(table)
                yield from _documents(table, field)
        else:
            yield from software_heritage.fetch(_blobs(tables))

    def _open(self, skip: int) -> tuple[Iterator[Any], Sequence[str]]:  # Any: pyarrow has no types
        """The rows behind `skip` as tables, and which columns they have: those that are needed alone."""
        source, split = self._source, self._config.dataset_split
        if self._config.streaming and not source.is_prepared:
            rows, columns = self._open_stream()
            rows = rows.skip(skip)
        else:
            source.builder.download_and_prepare()  # once: what is there is left as it is
            rows = source.builder.as_dataset(split)
            columns = self._needed(rows.column_names)
            if skip >= len(rows):
                return iter(()), columns
            rows = rows.select_columns(columns).select(range(skip, len(rows)))
        return rows.with_format("arrow").iter(_ROWS), columns

    def _open_stream(self) -> tuple[Any, Sequence[str]]:  # Any: datasets has no types
        from datasets.packaged_modules.parquet.parquet import Parquet

        builder, split = self._source.builder, self._config.dataset_split
        rows = builder.as_streaming_dataset(split)
        names = rows.column_names or next(rows.with_format("arrow").iter(1)).column_names
        columns = self._needed(names)
        if isinstance(builder, Parquet):
            # Only these leave the hub; `select_columns` would drop the others behind the download.
            builder.config.columns = list(columns)
            return builder.as_streaming_dataset(split), columns
        return rows.select_columns(columns), columns

    def _needed(self, names: Sequence[str]) -> list[str]:
        field = self._config.text_field
        if field in names:
            return [field, *(["id"] if "id" in names and field != "id" else [])]
        if set(software_heritage.COLUMNS) <= set(names):
            return [name for name in (*software_heritage.COLUMNS, *software_heritage.NAME_COLUMNS) if name in names]
        raise DataError(
            f"the dataset {self._name} has no column {field!r}, but {listed(names)}. Name the one that holds the text, "
            "as in --set data.text_field=content."
        )

    def _check_type(self, table: Any) -> None:  # Any: pyarrow has no types
        field = self._config.text_field
        kind = table.schema.field(field).type
        if not holds_text(kind):
            raise DataError(
                f"column {field!r} of the dataset {self._name} is of type {kind}, not string. Name one that holds "
                "text, as in --set data.text_field=content."
            )


def _documents(table: Any, field: str) -> Iterator[Document | DataError]:  # Any: pyarrow has no types
    texts = values(table[field])
    names = values(table["id"]) if "id" in table.column_names else [None] * len(texts)
    for text, name in zip(texts, names, strict=True):
        if isinstance(text, str):
            yield Document(text, id_of(name))
        elif text is None:
            yield DataError(f"{field!r} {NULL}")
        else:
            yield DataError(f"{field!r} {NOT_UTF8.format(text)}")


def _blobs(tables: Iterable[Any]) -> Iterator[software_heritage.Blob | DataError]:
    for table in tables:
        for row in table.to_pylist():
            try:
                yield software_heritage.Blob.of_row(row)
            except DataError as error:
                yield error


def _explained_tables(name: str, tables: Iterator[Any]) -> Iterator[Any]:
    while True:
        try:
            table = next(tables)
        except StopIteration:
            return
        except BUGS:
            raise
        except Exception as error:
            raise explain(name, error) from error
        yield table
