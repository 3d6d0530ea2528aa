"""Finding a dataset of the Hugging Face hub: its commit, configuration and copy in the cache; what is wrong with it."""

import json
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colakit.errors import DataError

logger = logging.getLogger(__name__)

_ANSWER_S = 5.0
"""How long the hub may take to say which commit a dataset is at: no longer, since there may be no network at all."""
BUGS = (AssertionError, AttributeError, LookupError, NameError, TypeError)
"""Errors that no dataset and no network is to blame for."""
_INSTEAD = (
    "Use --data PATH for text of your own, or --set data.source=stdlib (with --set data.tokenizer=bpe where there is "
    "no network)"
)


@dataclass(frozen=True, slots=True)
class Source:
    """What was found: a `datasets.DatasetBuilder`, and whether its files are in the cache, ready to be read."""

    revision: str
    builder: Any  # datasets has no types
    is_prepared: bool


def find(name: str, asked: str, config_name: str | None) -> Source:
    """The dataset at the commit the hub names; where it names none, at the newest one that the cache holds."""
    try:
        revision = _ask_hub(name, asked)
    except BUGS:
        raise
    except Exception as error:
        source = _find_cached(name, asked, config_name)
        if source is None:
            raise
        found = f"Reading revision {source.revision} from the cache."
        logger.warning("The Hugging Face hub does not give out the dataset %s (%s). %s", name, _reason(error), found)
        return source
    builder = _hub_builder(name, revision, config_name)
    return Source(revision, builder, (Path(builder.cache_dir) / "dataset_info.json").is_file())


def _ask_hub(name: str, asked: str) -> str:
    """The commit of a dataset's revision, at the price of one request that is not tried again."""
    import datasets.config
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled

    url = hf_hub_url(name, "README.md", repo_type="dataset", revision=asked or None)  # also checks the name
    if datasets.config.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled("offline mode is set by HF_HUB_OFFLINE or HF_DATASETS_OFFLINE")
    try:
        commit = get_hf_file_metadata(url, timeout=_ANSWER_S).commit_hash
    except EntryNotFoundError:  # a dataset without a README
        commit = HfApi().dataset_info(name, revision=asked or None, timeout=_ANSWER_S).sha
    if commit is None:
        raise ConnectionError("it does not tell the commit; HF_ENDPOINT may be wrong")
    return commit


def _hub_builder(name: str, revision: str, config_name: str | None) -> Any:  # Any: datasets has no types
    from datasets import load_dataset_builder
    from huggingface_hub import HfApi

    try:
        # With hf:// no folder of this name in the working directory is taken for it.
        builder = load_dataset_builder(f"hf://datasets/{name}", config_name, revision=revision)
    except ValueError as error:
        raise _config_error(name, revision, config_name) or error from error
    except RuntimeError as error:
        script = f"{name.rpartition('/')[2]}.py"
        if not HfApi().file_exists(name, script, repo_type="dataset", revision=revision):
            raise
        raise DataError(
            f"the dataset {name} is made by a script ({script}), which the datasets library does not run. Use another "
            "dataset, or give its text, as .parquet or .jsonl files, with --data PATH."
        ) from error
    if builder.hash != revision:  # datasets took whatever its cache holds, since the hub stopped answering
        raise ConnectionError("the hub stopped answering")
    return builder


def _config_error(name: str, revision: str, config_name: str | None) -> DataError | None:
    """What is wrong with the name of the configuration, if that is what is wrong."""
    from datasets import get_dataset_config_names

    names = get_dataset_config_names(f"hf://datasets/{name}", revision=revision)
    if config_name in names or (config_name is None and len(names) == 1):
        return None
    fault = "has several configurations: " if config_name is None else f"has no configuration {config_name!r}, but "
    return DataError(f"the dataset {name} {fault}{listed(names)}. Name one with --set data.dataset_config={names[0]}.")


def _find_cached(name: str, asked: str, config_name: str | None) -> Source | None:
    """The newest copy that an earlier run prepared. Raises DataError where it is not clear of which configuration."""
    import datasets.config
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    owner, _, short = name.rpartition("/")
    root = Path(datasets.config.HF_DATASETS_CACHE) / "___".join(filter(None, (owner, camelcase_to_snakecase(short))))
    copies = [
        info.parent
        for info in root.glob("*/*/*/dataset_info.json")
        if not info.parent.name.endswith(".incomplete")
        # A copy that was made with arguments of its own has more than the configuration in its folder's name.
        and json.loads(info.read_text())["config_name"] == info.parts[-4]
        and config_name in (None, info.parts[-4])
        and asked in ("", info.parts[-2])
    ]
    if not copies:
        return None
    if len(names := sorted({copy.parts[-3] for copy in copies})) > 1:
        raise DataError(
            f"the Hugging Face hub cannot be asked, and the cache {root} holds several configurations of the dataset "
            f"{name}: {listed(names)}. Name one with --set data.dataset_config={names[0]}."
        )
    newest = max(copies, key=lambda copy: copy.stat().st_mtime)
    found, version, revision = newest.parts[-3:]
    builder = Cache(dataset_name=short, repo_id=name, config_name=found, version=version, hash=revision)
    return Source(revision, builder, is_prepared=True)


def splits(builder: Any) -> list[str]:  # Any: datasets has no types
    return [str(split) for split in builder.config.data_files or builder.info.splits or ()]


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Whatever goes wrong inside leaves as one DataError. Nothing else is shown, save progress on a terminal."""
    try:
        with _quiet():
            yield
    except (DataError, *BUGS):
        raise
    # Of datasets, of the hub's client, and of the HTTP client below, which has changed between its versions.
    except Exception as error:
        raise explain(name, error) from error


def explain(name: str, error: BaseException) -> DataError:
    from datasets import data_files, exceptions
    from datasets.table import CastError
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    log_in = "log in with `hf auth login` or HF_TOKEN"
    gated = f"is gated. Accept its terms at https://huggingface.co/datasets/{name}, then {log_in}."
    no_files = "holds no data files that the datasets library reads. Name another dataset."
    messages: tuple[tuple[type[Exception], str], ...] = (
        (HFValidationError, "has no dataset's name, which is NAME or OWNER/NAME. Use --data PATH for local files."),
        (GatedRepoError, gated),
        (exceptions.DatasetNotFoundError, gated),  # of a repository that was found a moment ago
        (RepositoryNotFoundError, f"is not on the Hugging Face hub, or is private. Check the name, or {log_in}."),
        (RevisionNotFoundError, "has no such revision. Name another, or none, with --set data.dataset=NAME@REVISION."),
        (exceptions.DataFilesNotFoundError, no_files),
        (data_files.EmptyDatasetError, no_files),
        (
            CastError,
            "holds files with different columns, which cannot be prepared. Read it with --set data.streaming=true, "
            "which takes the text alone.",
        ),
    )
    for kind, message in messages:
        if any(isinstance(cause, kind) for cause in _causes(error)):
            return DataError(f"the dataset {name} {message}")
    reason = _reason(error)
    if isinstance(error, exceptions.DatasetGenerationError | ValueError):
        return DataError(f"the dataset {name} holds data that cannot be read ({reason}). {_INSTEAD}.")
    return DataError(
        f"the dataset {name} cannot be had from the Hugging Face hub ({reason}). {_INSTEAD}; or set "
        "HF_DATASETS_CACHE (by default $HF_HOME/datasets) to a cache that an earlier run has read it into."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _reason(error: BaseException) -> str:
    first = list(_causes(error))[-1]
    return (str(first).strip().splitlines() or [type(first).__name__])[0].rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """The libraries' warnings are not the user's, who is told once; their progress goes to a terminal or nowhere."""
    import datasets
    from datasets.utils import logging as datasets_logging
    from huggingface_hub import utils as hub_utils
    from huggingface_hub.utils import logging as hub_logging

    levels = [(module, module.get_verbosity()) for module in (datasets_logging, hub_logging)]
    shown = [library for library in (datasets, hub_utils) if not library.are_progress_bars_disabled()]
    hidden = [] if sys.stderr.isatty() else shown
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for module, _ in levels:
                module.set_verbosity(logging.CRITICAL)
            for library in hidden:
                library.disable_progress_bars()
            yield
        finally:
            for module, level in levels:
                module.set_verbosity(level)
            for library in hidden:
                library.enable_progress_bars()


def listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
