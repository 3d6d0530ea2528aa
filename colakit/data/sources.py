"""From `DataConfig` to a stream of documents: which reader a source needs, and what can be checked before reading."""

from collections.abc import Iterator

from colakit.config.schema import DataConfig
from colakit.data.cache import cache_root
from colakit.data.corpus import read_stdlib, stdlib_root
from colakit.data.document import Document
from colakit.data.files import SourceFile, find_files
from colakit.data.lines import read_jsonl, read_txt
from colakit.data.tables import read_parquet
from colakit.errors import DataError

__all__ = ["Document", "check_source", "read_documents"]


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
        name = config.path or config.source
        raise DataError(f"{name} holds no text: every document is blank. Give text with --data PATH.")


def _read_files(config: DataConfig) -> Iterator[Document]:
    files = find_files(_required_path(config))
    n_txt = sum(file.ending == ".txt" for file in files)
    for file in files:
        yield from _read_file(file, config, is_only_txt=n_txt == 1)


def _read_file(file: SourceFile, config: DataConfig, *, is_only_txt: bool) -> Iterator[Document]:
    if file.ending == ".txt":
        # Several files are held out by file; a single one has to be cut, or nothing could be held out.
        return read_txt(file.path, None if is_only_txt else file.name)
    if file.ending == ".parquet":
        return read_parquet(file.path, cache_root(config) / "datasets")
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
