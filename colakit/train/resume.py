"""From a run folder or one of its checkpoints to what a `Trainer` needs to go on."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from colakit.checkpoint.folders import MANIFEST, Checkpoints, step_of, verify
from colakit.config.load import from_saved
from colakit.config.schema import RunConfig
from colakit.errors import CheckpointError, ConfigError, Problem, RunError
from colakit.train.metrics import last_records, trim
from colakit.train.moved import MAY_MOVE, may_move
from colakit.train.runs import CONFIG_FILE, STATE_FILE, TOTALS_FILE, RunFolder, processes_of, resume_command, write_json
from colakit.train.state import read_json
from colakit.train.totals import Totals

log = logging.getLogger(__name__)

MAY_CHANGE = frozenset(
    {
        *(f"train.{name}" for name in ("max_steps", "micro_batch_size", "eval_every", "eval_tokens", "sample_tokens")),
        *(f"train.{name}" for name in ("checkpoint_every", "checkpoint_every_min", "keep_last", "keep_every")),
        *(f"train.{name}" for name in ("skip_spikes", "max_skipped", "memory_gib")),
        "data.on_bad_record",
        "parallel.strategy",
        "parallel.timeout_s",
        *MAY_MOVE,
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
    checkpoint, or a file of it is not what was written; ConfigError for a change that would make it another run;
    RunError where another process has the folder, which is this one's from now on.
    """
    if path.is_file():
        raise CheckpointError(f"{path} is a file. Give the folder of a run, or of one of its checkpoints.")
    resolved = path.resolve()  # a link, or "." inside a checkpoint
    is_checkpoint = step_of(resolved) is not None and resolved.parent.name == RunFolder(path).checkpoints.name
    if not is_checkpoint and (resolved / MANIFEST).is_file():
        raise CheckpointError(
            f"{path} is a checkpoint without its name or its run. To go on from it, give it back its name, as in "
            "step-00000100, among the checkpoints of its run."
        )
    root = resolved.parent.parent if is_checkpoint else path
    folder = RunFolder(root, there=root)
    written = folder.load_config()  # refuses what is no run folder
    folder.lock.acquire()  # before the newest is looked for: it stays the newest
    try:
        checkpoint = resolved if is_checkpoint else _newest(folder)
        if not checkpoint.is_dir():
            there = ", ".join(each.name for each in Checkpoints(folder.checkpoints).all()) or "none"
            raise CheckpointError(f"{path}: no such checkpoint. There are: {there}.")
        check_whole(checkpoint)
        stored = from_saved(read_json(checkpoint / CONFIG_FILE))
        current = _with_later_changes(stored, written)
        config = change(current)
        try:
            totals = Totals.from_dict(read_json(checkpoint / TOTALS_FILE))
        except (KeyError, TypeError) as error:
            what = f"{checkpoint / TOTALS_FILE} does not fit this version of colakit ({error})."
            raise CheckpointError(what) from error
        if totals.steps != step_of(checkpoint):
            raise CheckpointError(
                f"{checkpoint} holds step {totals.steps}. Give it back its name: "
                f"{Checkpoints(folder.checkpoints).path_of(totals.steps).name}."
            )
        refuse_changes(stored, config, steps=totals.steps)
        if any(not _may_change(field) for field in _differences(stored, written)):
            log.warning("%s is not what the run was made with; the checkpoint's configuration is used.", folder.config)
        if (before := current.train.max_steps) != (now := config.train.max_steps):
            log.warning("train.max_steps is %d now, not %d: the learning rate follows that schedule.", now, before)
        sizes = [c.train.effective_micro_batch_size for c in (stored, config)]
        if sizes[0] != sizes[1]:
            log.warning(
                "Micro-batches have %d sequences now, not %d: the run goes on, but not to the same bits.", *sizes[::-1]
            )
        if totals.steps == config.train.max_steps and _is_finished(folder, checkpoint):
            raise RunError(f"{root} is finished, at step {totals.steps}. To go on, raise --set train.max_steps=N.")
        return Resumption(folder, checkpoint, config, read_json(checkpoint / STATE_FILE), totals)
    except BaseException:
        folder.lock.release()
        raise


def reopen(resume: Resumption) -> None:
    """Put the run's folder back to where it was after the checkpoint's step."""
    folder, steps = resume.folder, resume.totals.steps
    checkpoints = Checkpoints(folder.checkpoints)
    checkpoints.sweep()
    for path in checkpoints.abandon_behind(steps):
        log.warning("Going on from step %d: a later checkpoint is %s from now on.", steps, path.name)
    trim(folder.metrics, steps)
    last = last_records(folder.metrics)
    if not last or last[-1].step < steps:
        log.warning("%s does not reach step %d: the records before are lost.", folder.metrics, steps)
    folder.summary.unlink(missing_ok=True)
    write_json(folder.config, resume.config.model_dump())


def refuse_changes(stored: RunConfig, wanted: RunConfig, *, steps: int) -> None:
    """Raise ConfigError, listing them, where fields differ that make a run, of which `steps` are made, what it is."""
    problems = [
        Problem(field, ours, f"the run has {theirs!r}, and this makes it another run", "Leave it as it is.")
        for field, (theirs, ours) in _differences(stored, wanted).items()
        if not _may_change(field)
    ]
    longer = wanted.train.max_steps
    if longer < steps:
        rule = f"{steps} steps are made, and none is taken back"
        problems.append(Problem("train.max_steps", longer, rule, "Raise it, or resume an earlier checkpoint."))
    if longer != stored.train.max_steps and any(stage.until_frac is not None for stage in stored.data.stages):
        rule = f"the run has {stored.train.max_steps}, and data.stages end at shares of it: another mixture was read"
        problems.append(Problem("train.max_steps", longer, rule, "Leave it; until_tokens allows for longer runs."))
    if problems:
        raise ConfigError(problems, of=wanted.preset)


def _with_later_changes(stored: RunConfig, written: RunConfig) -> RunConfig:
    """A checkpoint's configuration, with what has been changed in the run's own since then, and may be."""
    values, fields = stored.model_dump(), dict(_leaves(stored))
    for field, (_, now) in _differences(stored, written).items():
        if field in fields and _may_change(field):
            *tables, name = field.split(".")
            reduce(getitem, tables, values)[name] = now
    return from_saved(values)


def _differences(one: RunConfig, other: RunConfig) -> dict[str, tuple[object, object]]:
    """The fields that differ, with both values."""
    first, second = dict(_leaves(one)), dict(_leaves(other))
    pairs = {field: (first.get(field), second.get(field)) for field in first | second}
    return {field: (theirs, ours) for field, (theirs, ours) in pairs.items() if theirs != ours}


def _may_change(field: str) -> bool:
    return field in MAY_CHANGE or may_move(field)


def _leaves(config: RunConfig) -> Iterator[tuple[str, object]]:
    """Every field by its dotted name, those of each named source too."""
    values = config.model_dump()
    sources = values["data"].pop("sources")
    tables = {**values, **{f"data.sources.{name}": source for name, source in sources.items()}}
    for table, fields in tables.items():
        if isinstance(fields, dict):
            yield from ((f"{table}.{name}", value) for name, value in fields.items())


def _newest(folder: RunFolder) -> Path:
    newest = Checkpoints(folder.checkpoints).newest()
    if newest is None:
        raise CheckpointError(f"{folder.root} has no checkpoint to go on from. Remove it, and start again.")
    return newest


def _is_finished(folder: RunFolder, checkpoint: Path) -> bool:
    """Whether it has a summary, not one that a signal brought about, and the model of its last checkpoint."""
    if not folder.has_model_of(checkpoint):
        return False
    try:
        return not json.loads(folder.summary.read_text("utf-8"))["interrupted"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_whole(checkpoint: Path) -> None:
    """Raise CheckpointError, offering the newest whole one before it, where a checkpoint is not what was written."""
    try:
        verify(checkpoint)
    except CheckpointError as error:
        whole = Checkpoints(checkpoint.parent).newest_whole(before=step_of(checkpoint) or 0)
        advice = "There is no whole checkpoint before it."
        if whole is not None:
            command = resume_command(whole, processes_of(whole))
            advice = f"The newest whole checkpoint before it is {whole}; to go on from there: `{command}`."
        raise CheckpointError(f"{error} {advice}") from error
