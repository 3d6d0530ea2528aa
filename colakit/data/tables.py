"""Documents from .parquet files, some megabytes of rows at a time; of a row group, pyarrow may hold all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colakit.data.document import Document, OnBad, id_of
from colakit.errors import DataError

_BATCH_BYTES = 2**24
_MOST_ROWS = 1024
NULL = "is null. Drop the row, or write an empty string."
NOT_UTF8 = "is not UTF-8 ({}). Drop the row, or write its text anew."


def read_parquet(path: Path, text_field: str, on_bad: OnBad) -> Iterator[Document]:
    """One document per row: column `text_field`, and ``id`` where there is one. Blank texts are skipped.

    A row without text is bad. Raises DataError for a damaged file, a missing column, a column not of strings.
    """
    for number, row in enumerate(_rows(path, text_field)):
        text, name = row[text_field], row.get("id")
        if text is None:
            on_bad(DataError(f"{path}, row {number}: {text_field!r} {NULL}"))
        elif isinstance(text, UnicodeDecodeError):
            on_bad(DataError(f"{path}, row {number}: {text_field!r} {NOT_UTF8.format(text)}"))
        elif text.strip():
            yield Document(text, id_of(name))


def _rows(path: Path, text_field: str) -> Iterator[dict[str, Any]]:  # Any: an id is of whatever type the file has
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = _check_columns(file.schema_arrow, path, text_field)
            for batch in file.iter_batches(_rows_per_batch(file.metadata), columns=columns):
                rows = zip(*(values(batch[name]) for name in columns), strict=True)
                yield from (dict(zip(columns, row, strict=True)) for row in rows)
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise DataError(f"{path}: not a parquet file, or a damaged one ({error}). Fetch it again.") from error


def _rows_per_batch(metadata: Any) -> int:  # Any: pyarrow has no types
    """As many rows as hold little text, if those of the largest row group are alike."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    row_bytes = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1.0)
    return max(1, min(_MOST_ROWS, int(_BATCH_BYTES / max(1.0, row_bytes))))


def _check_columns(schema: Any, path: Path, text_field: str) -> list[str]:  # Any: pyarrow has no types
    if text_field not in schema.names:
        held = ", ".join(repr(name) for name in schema.names) or "none"
        raise DataError(
            f"{path}: there is no column {text_field!r} (its columns: {held}). Name the one that holds the text with "
            "--set data.text_field=COLUMN."
        )
    if schema.names.count(text_field) > 1:
        raise DataError(f"{path}: several columns are called {text_field!r}. Rename all but one.")
    kind = schema.field(text_field).type
    if not holds_text(kind):
        raise DataError(f"{path}: column {text_field!r} is of type {kind}, not string. Write the texts as strings.")
    return [name for name in (text_field, "id") if name in schema.names]


def holds_text(kind: Any) -> bool:  # Any: pyarrow has no types
    """Whether a column of this type can be read as texts: of strings, or of nulls alone, each of them a bad record."""
    from pyarrow import types

    if types.is_dictionary(kind):  # a category of pandas; its rows are read as what it stands for
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind))


def values(column: Any) -> list[Any]:  # Any: pyarrow has no types
    """The values; where bytes are not UTF-8, as half of a surrogate pair, the UnicodeDecodeError in their place."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error
