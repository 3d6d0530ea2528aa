"""Documents from .parquet files, streamed by HF `datasets` row by row, so that a large file costs no memory."""

from collections.abc import Iterator
from pathlib import Path

from colakit.data.document import Document
from colakit.errors import DataError


def read_parquet(path: Path, cache: Path) -> Iterator[Document]:
    """One document per row: column ``text``, and ``id`` where there is one. Blank texts are skipped.

    `cache` takes the lock files of `datasets`. Raises DataError for a damaged file, a missing column, a text that is
    not a string.
    """
    from datasets import load_dataset

    columns = _check_columns(path)
    rows = load_dataset("parquet", data_files=[str(path)], split="train", streaming=True, cache_dir=str(cache))
    try:
        for number, row in enumerate(rows.select_columns(columns)):
            if row["text"] is None:
                raise DataError(f"{path}, row {number}: 'text' is null. Drop the row, or write an empty string.")
            if row["text"].strip():
                name = row.get("id")
                yield Document(row["text"], None if name is None else str(name))
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise DataError(f"{path}: a damaged parquet file ({error}). Fetch it again.") from error


def _check_columns(path: Path) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a parquet file, or a damaged one ({error}). Fetch it again.") from error
    if "text" not in schema.names:
        held = ", ".join(repr(name) for name in schema.names) or "none"
        raise DataError(f"{path}: there is no column 'text' (its columns: {held}). Rename the one that holds the text.")
    kind = schema.field("text").type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise DataError(f"{path}: column 'text' is of type {kind}, not string. Write the texts as strings.")
    return [name for name in ("text", "id") if name in schema.names]
