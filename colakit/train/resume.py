"""From a run folder or one of its checkpoints to what a `Trainer` needs to go on."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colakit.checkpoint.folders import Checkpoints, step_of, verify
from colakit.config.load import from_saved
from colakit.config.schema import RunConfig
from colakit.errors import CheckpointError, ConfigError, Problem
from colakit.train.runs import RunFolder
from colakit.train.totals import Totals

STATE_FILE = "state.json"
"""What the next step depends on, besides weights and optimizer: it is the same whenever and wherever it is reached."""
TOTALS_FILE = "totals.json"
CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"

MAY_CHANGE = frozenset(
    {
        *(f"train.{name}" for name in ("max_steps", "micro_batch_size", "eval_every", "eval_tokens", "sample_tokens")),
        *(f"train.{name}" for name in ("checkpoint_every", "checkpoint_every_min", "keep_last", "keep_every")),
        *(f"train.{name}" for name in ("skip_spikes", "max_skipped", "memory_gib")),
        # Where the data lies; that it is the same is told by its fingerprint.
        *(f"data.{name}" for name in ("path", "cache_dir", "on_bad_record")),
    }
)
"""Fields that may differ between two parts of a run."""


@dataclass(frozen=True)
class Resumption:
    """A checkpoint, whole and read as far as it is text."""

    folder: RunFolder
    checkpoint: Path
    config: RunConfig
    """The run's, with the changes that were asked for."""
    state: dict[str, Any]  # Any: JSON values
    totals: Totals


def plan_resumption(path: Path, change: Callable[[RunConfig], RunConfig]) -> Resumption:
    """How to go on from `path`, a run folder, whose newest checkpoint is taken, or a checkpoint.

    `change` makes of the stored configuration the one that is wanted. Raises CheckpointError where there is no
    checkpoint, or a file of it is not what was written; ConfigError for a change that would make it another run.
    """
    checkpoint = path if step_of(path) is not None else _newest(path)
    _check_whole(checkpoint)
    stored = from_saved(_read(checkpoint / CONFIG_FILE))
    config = change(stored)
    refuse_changes(stored, config)
    try:
        totals = Totals.from_dict(_read(checkpoint / TOTALS_FILE))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint / TOTALS_FILE} does not fit this version of colakit ({error}).") from error
    root = checkpoint.parent.parent
    return Resumption(RunFolder(root, there=root), checkpoint, config, _read(checkpoint / STATE_FILE), totals)


def refuse_changes(stored: RunConfig, wanted: RunConfig) -> None:
    """Raise ConfigError, listing them, where fields differ that make a run what it is."""
    theirs, ours = dict(_leaves(stored)), dict(_leaves(wanted))
    problems = [
        Problem(name, ours[name], f"the run has {theirs[name]!r}, and this makes it another run", "Leave it as it is.")
        for name in ours
        if ours[name] != theirs[name] and name not in MAY_CHANGE
    ]
    if problems:
        raise ConfigError(problems, of=wanted.preset)


def _leaves(config: RunConfig) -> Iterator[tuple[str, object]]:
    for section, values in config.model_dump().items():
        if isinstance(values, dict):
            yield from ((f"{section}.{name}", value) for name, value in values.items())


def _newest(root: Path) -> Path:
    folder = RunFolder(root)
    folder.load_config()  # refuses what is no run folder
    newest = Checkpoints(folder.checkpoints).newest()
    if newest is None:
        raise CheckpointError(f"{root} has no checkpoint: nothing was trained yet. Start again with `colakit train`.")
    return newest


def _check_whole(checkpoint: Path) -> None:
    try:
        verify(checkpoint)
    except CheckpointError as error:
        whole = Checkpoints(checkpoint.parent).newest_whole(before=step_of(checkpoint) or 0)
        advice = (
            f"The newest whole checkpoint before it is {whole}: `colakit train --resume {whole}`."
            if whole is not None
            else "There is no whole checkpoint before it."
        )
        raise CheckpointError(f"{error} {advice}") from error


def _read(path: Path) -> dict[str, Any]:  # Any: JSON values
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}).") from error
    assert isinstance(content, dict), path
    return content
