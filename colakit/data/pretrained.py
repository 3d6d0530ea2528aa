"""Finding a tokenizer by the name a user gives: a folder, a tokenizer.json, or a repository of the Hugging Face hub."""

import os
from contextlib import suppress
from pathlib import Path

from colakit.data.paths import user_path
from colakit.data.tokenizer import Tokenizer, read_tokenizer
from colakit.errors import DataError

_ADVICE = "Give a folder with a tokenizer.json, a hub name such as HuggingFaceTB/SmolLM2-135M, or bpe."


def load_tokenizer(name_or_path: str) -> Tokenizer:
    """The tokenizer of a local folder or tokenizer.json, else of a hub repository: from its cache, else downloaded.

    Raises DataError where there is none, or where the hub cannot be reached.
    """
    check_tokenizer(name_or_path)
    path = _local_path(name_or_path) or _hub_file(name_or_path)
    return read_tokenizer(path, source=name_or_path)


def check_tokenizer(name_or_path: str) -> None:
    """Raise DataError for a path that does not exist; whether the hub has a name is known only by asking it."""
    if name_or_path.lower() == "bpe":
        raise DataError(f"data.tokenizer = {name_or_path!r}: write bpe, in small letters.")
    if _local_path(name_or_path) is None and _is_path(name_or_path):
        raise DataError(f"data.tokenizer = {name_or_path!r}: there is no such file or folder. {_ADVICE}")


def _local_path(name: str) -> Path | None:
    """Where `name` is on disk, None where it is not. Raises DataError where that cannot be found out."""
    path = user_path(name, "data.tokenizer")
    try:
        return path if path.exists() else None
    except OSError as error:
        raise DataError(f"data.tokenizer = {name!r} cannot be read: {error.strerror}. {_ADVICE}") from error


def _is_path(name: str) -> bool:
    """Whether `name` can only be a path: a hub name is ``name`` or ``owner/name``."""
    return name.startswith(("/", ".", "~")) or name.endswith((".json", os.sep)) or name.count("/") > 1


def _hub_file(repository: str) -> Path:
    """The cached tokenizer.json, its tokenizer_config.json beside it where the repository has one."""
    # Which errors there are depends on the HTTP client under huggingface_hub, which has changed between its versions.
    try:
        path = _download(repository, "tokenizer.json")
    except Exception as error:
        raise DataError(
            f"data.tokenizer = {repository!r}: no such local folder, and it cannot be had from the Hugging Face hub "
            f"({_first_line(error)}). Use --set data.tokenizer=bpe, which trains one on your text; a local folder with "
            "a tokenizer.json; or set HF_HOME to a cache that holds this repository. "
            "--smoke without data.tokenizer needs no network."
        ) from error
    with suppress(Exception):  # not every repository has one, nor every cache
        _download(repository, "tokenizer_config.json")
    return path


def _download(repository: str, name: str) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name, local_files_only=True))
    except LocalEntryNotFoundError:
        # Asked once, since the download would retry for half a minute where there is no network.
        get_hf_file_metadata(hf_hub_url(repository, name))
        return Path(hf_hub_download(repository, name))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
