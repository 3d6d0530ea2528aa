"""From `DataConfig` to a stream of documents: which reader a source needs, and what can be checked before reading."""

from collections.abc import Iterator
from urllib.parse import quote

from colakit.config.schema import DataConfig
from colakit.data.cleaning import has_words, remove_crawl_markers, remove_urls
from colakit.data.corpus import read_stdlib, stdlib_root
from colakit.data.document import Document
from colakit.data.files import SourceFile, find_files
from colakit.data.lines import read_jsonl, read_txt
from colakit.data.tables import read_parquet
from colakit.errors import DataError

__all__ = ["Document", "Documents", "check_source", "source_name"]


def check_source(config: DataConfig) -> None:
    """Raise the DataError that reading would begin with, at the price of listing files: nothing is read."""
    if config.source == "stdlib":
        stdlib_root()
    elif config.source == "files":
        find_files(_required_path(config))
    else:
        raise _hub_error(config)


class Documents:
    """Every document of the source, cleaned as configured, in a fixed order; none is blank. Each pass reads it anew.

    A pass raises DataError naming file and line of the first fault, and for a source without any text.
    """

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self.short = 0
        """Documents that the latest pass left out, of fewer than ``data.min_words`` words."""

    def __iter__(self) -> Iterator[Document]:
        config = self._config
        check_source(config)
        self.short, empty = 0, True
        for document in read_stdlib() if config.source == "stdlib" else _read_files(config):
            text = _clean(document.text, config)
            if not has_words(text, config.min_words):
                self.short += 1
            elif text.strip():
                empty = False
                yield Document(text, document.id)
        if empty:
            few = f"no document of {config.min_words} words (data.min_words)" if self.short else "no text but blanks"
            raise DataError(f"{source_name(config)} holds {few}. Give text with --data PATH.")


def _clean(text: str, config: DataConfig) -> str:
    if config.remove_urls:
        text = remove_urls(text)
    return remove_crawl_markers(text) if config.remove_crawl_markers else text


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
