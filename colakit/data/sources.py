"""From `DataConfig` to a stream of documents: which reader a source needs, and what can be checked before reading."""

from collections.abc import Iterator
from urllib.parse import quote

from colakit.config.schema import DataConfig
from colakit.data.corpus import read_stdlib, stdlib_root
from colakit.data.document import Document
from colakit.data.files import SourceFile, find_files
from colakit.data.lines import read_jsonl, read_txt
from colakit.data.tables import read_parquet
from colakit.errors import DataError

__all__ = ["Document", "check_source", "read_documents", "source_name"]


def check_source(config: DataConfig) -> None:
    """Raise the DataError that reading would begin with, at the price of listing files: nothing is read."""
    if config.source == "stdlib":
        stdlib_root()
    elif config.source == "files":
        find_files(_required_path(config))
    else:
        raise _hub_error(config)


def read_documents(config: DataConfig) -> Iterator[Document]:
    """Every document of the source, in a fixed order; none is blank.

    Raises DataError naming file and line of the first fault, and for a source without any text.
    """
    check_source(config)
    documents = read_stdlib() if config.source == "stdlib" else _read_files(config)
    empty = True
    for document in documents:
        empty = False
        yield document
    if empty:
        raise DataError(f"{source_name(config)} holds no text: every document is blank. Give text with --data PATH.")


def source_name(config: DataConfig) -> str:
    """How messages name the source."""
    return config.path or config.source


def _read_files(config: DataConfig) -> Iterator[Document]:
    """A .txt file is held out as a whole, but one with more bytes than shall be held out at all is cut.

    So a folder of many texts is split between texts, and a few large ones still hold out about `val_fraction`.
    """
    files = find_files(_required_path(config))
    largest_whole = config.val_fraction * sum(file.n_bytes for file in files)
    for file in files:
        yield from _read_file(file, is_cut=file.n_bytes > largest_whole)


def _read_file(file: SourceFile, *, is_cut: bool) -> Iterator[Document]:
    if file.ending == ".txt":
        return read_txt(file.path, None if is_cut else quote(file.name))  # quoted, since a "#" ends a group's name
    if file.ending == ".parquet":
        return read_parquet(file.path)
    return read_jsonl(file.path)


def _required_path(config: DataConfig) -> str:
    if not config.path:
        raise DataError("data.source = 'files' needs data.path. Give --data PATH.")
    return config.path


def _hub_error(config: DataConfig) -> DataError:
    return DataError(
        f"this preset reads the dataset {config.dataset} from the Hugging Face hub, which this version does not read "
        "yet. Use --smoke for a short run, --data PATH for text of your own, or --set data.source=stdlib (with "
        "--set data.tokenizer=bpe where there is no network)."
    )
