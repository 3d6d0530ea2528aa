"""The data of a run that was made before: it may lie elsewhere by now, and has to be what it was."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colakit.config.load import override
from colakit.config.schema import RunConfig
from colakit.data.prepare import PreparedData, check_sources
from colakit.errors import ConfigError, DataError, Problem

MAY_MOVE = frozenset({"data.path", "data.cache_dir"})
"""And the path of each named source."""


def may_move(field: str) -> bool:
    """Whether a field only says where the data lies."""
    return field in MAY_MOVE or (field.startswith("data.sources.") and field.endswith(".path"))


def with_moved_data(config: RunConfig, sets: Sequence[str]) -> RunConfig:
    """`config` with ``--set`` strings over it. Raises ConfigError for any that says more than where the data lies."""
    advice = "Only data.path, cache_dir and source paths may be set; with --data PATH, whatever says how it is read."
    problems = [
        Problem("--set", item, "the run is evaluated as it was trained", advice)
        for item in sets
        if not may_move(item.partition("=")[0].strip())
    ]
    if problems:
        raise ConfigError(problems)
    return override(config, sets) if sets else config


def check_where_it_lies(config: RunConfig) -> None:
    """Raise DataError where a source is not there, with what to say where it has moved."""
    try:
        check_sources(config.data)
    except DataError as error:
        moved = "Where the data has moved: --set data.path=PATH, of a named source data.sources.NAME.path."
        raise DataError(f"{error} {moved}") from error


def check_same_data(place: Path, counts: Path, then: str, now: PreparedData) -> None:
    """Raise DataError, with what differs, where the data is not that of fingerprint `then`, which the run saw.

    `place` names the run, `counts` is the file in which it described its data.
    """
    if then == now.fingerprint:
        return
    try:
        before = dict(_leaves(json.loads(counts.read_text("utf-8"))))
    except (OSError, ValueError):
        before = {}
    after = dict(_leaves(now.describe()))
    changes = [
        f"{name} {before[name]} then, {after.get(name)} now"
        for name in before
        if before[name] != after.get(name) and not name.endswith("fingerprint")
    ]
    differs = "; ".join(changes) or "its counts are the same, but not its content, or its form"
    raise DataError(
        f"{place}: the data has changed since this run ({differs}). Put the same files, or the same Python "
        "version for stdlib, back."
    )


def _leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:  # Any: JSON values
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return found
