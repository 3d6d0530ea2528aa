"""From a preset, ``--smoke``, ``--data`` and ``--set`` to one `RunConfig`, with the origin of every value.

Later wins: schema default, preset, ``--smoke``, ``--data``, ``--set``; then values derived from the rest. All problems
are collected and raised as one `ConfigError`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from colakit.config import rules, smoke
from colakit.config.fields import Layer, field_of, known_fields, validate
from colakit.config.overrides import parse_sets
from colakit.config.presets import load_preset, merge
from colakit.config.schema import DataConfig, RunConfig, SourceConfig
from colakit.errors import ConfigError, Problem


@dataclass(frozen=True)
class Resolved:
    """A validated configuration, and where each of its values came from."""

    config: RunConfig
    origins: Mapping[str, str]
    """Dotted field → ``default``, ``preset``, ``--smoke``, ``--data``, ``--set`` or ``derived``."""
    notes: tuple[str, ...] = ()
    """What was derived that the user may want to know, a sentence each."""


def resolve(preset: str, *, smoke_run: bool = False, data: str | None = None, sets: Sequence[str] = ()) -> Resolved:
    """Build the configuration of `preset` under the given overrides.

    `data` is a local file, folder or glob (``--data``); `sets` are ``section.key=value`` strings (``--set``): values in
    TOML, bare words taken as strings, and ``none`` as unset where the field can be. Raises ConfigError with every
    problem found.
    """
    loaded = load_preset(preset)
    problems: list[Problem] = []
    layers: list[tuple[str, Layer]] = [("preset", loaded.values)]
    # A preset's wrong values are reported below with everything else, where no later layer has put a right one in their
    # place; a section that is no table at once, since every later layer would hide it.
    base, base_problems = validate(loaded.values)
    if smoke_run:
        layers.append(("--smoke", smoke.overlay(base)))
    if data is not None:
        one = SourceConfig(source="files", path=data)
        layers.append(("--data", {"data": {**one.model_dump(), "sources": {}, "stages": (), **smoke.UNCLEANED}}))
    set_layer, set_problems = parse_sets(sets, merge(layer for _, layer in layers))
    layers.append(("--set", set_layer))
    problems += set_problems

    merged = merge(layer for _, layer in layers)
    if "preset" in merged:
        fix = "Leave it out: a preset is called as its file is."
        problems.append(Problem("preset", merged["preset"], "not a field to be set", fix))
    config, field_problems = validate({**merged, "preset": loaded.name})
    problems += field_problems
    reported = {p.field for p in field_problems}
    problems += [p for p in base_problems if p.field in RunConfig.model_fields and p.field not in reported]
    broken = {field_of(p.field) for p in problems}
    explicit = frozenset(_leaves(set_layer))
    for problem, fields in (*rules.check(config), *rules.check_explicit(config, explicit)):
        if broken.isdisjoint(fields):
            problems.append(problem)
    if problems:
        raise ConfigError(problems, of=loaded.name)
    notes = []
    if data is not None and base.data.sources:
        notes.append(f"--data replaces the preset's sources ({', '.join(base.data.sources)}) and its stages.")
    return _derive(config, _origins(config, layers), notes)


def from_saved(values: Layer) -> RunConfig:
    """The `RunConfig` of a run folder's ``config.json``. Raises ConfigError where it does not fit this version."""
    if not isinstance(values, dict):  # whatever JSON the file held
        raise ConfigError([Problem("config", values, "not a table of sections", "Restore the run's config.json.")])
    config, problems = validate(values)
    if problems:
        raise ConfigError(problems)
    return config


def override(config: RunConfig, sets: Sequence[str]) -> RunConfig:
    """`config` with ``--set`` strings over it. Raises ConfigError with every problem found."""
    stored = config.model_dump()
    layer, problems = parse_sets(sets, stored)
    changed, field_problems = validate(merge([stored, layer]))
    problems += [*field_problems, *(problem for problem, _ in rules.check(changed))]
    if problems:
        raise ConfigError(problems, of=config.preset)
    return changed.model_copy(update={"data": _with_absolute_paths(changed.data)})


def _leaves(values: Layer) -> Iterator[str]:
    for section, inner in values.items():
        if isinstance(inner, dict):
            yield from (f"{section}.{key}" for key in inner)
        else:
            yield section


def _origins(config: RunConfig, layers: Sequence[tuple[str, Layer]]) -> dict[str, str]:
    origins = dict.fromkeys(known_fields(), "default")
    for origin, layer in layers:
        origins |= dict.fromkeys(_leaves(layer), origin)
    return origins


def _derive(config: RunConfig, origins: dict[str, str], notes: list[str]) -> Resolved:
    """Fill in what follows from the rest: the warm-up of a short run, the micro-batch, the norm of Q, K, V."""
    derived: Layer = {"optim": {}, "train": {}, "model": {}}
    warmup, steps = config.optim.warmup_steps, config.train.max_steps
    if warmup >= steps:
        derived["optim"]["warmup_steps"] = max(1, steps // 10)
        notes.append(f"optim.warmup_steps is {max(1, steps // 10)} instead of {warmup}: train.max_steps is {steps}.")
    empty = [i for i, (begin, end) in enumerate(pairwise((0, *config.stage_ends)), 1) if begin == end < config.n_blocks]
    notes += [f"Stage {i} of {len(config.data.stages)} of the data is empty: it ends where it begins." for i in empty]
    late = [i for i, end in enumerate(config.stage_ends, 2) if end >= config.n_blocks]
    if late:
        begins = config.stage_ends[late[0] - 2]
        notes.append(
            f"Stage {late[0]} of {len(config.data.stages)} of the data is not reached: it begins at block {begins:,}, "
            f"and the run ends at block {config.n_blocks:,}."
        )
    if config.train.micro_batch_size != config.train.effective_micro_batch_size:
        derived["train"]["micro_batch_size"] = config.train.effective_micro_batch_size
    if config.model.qkv_norm is None:
        derived["model"]["qkv_norm"] = config.model.effective_qkv_norm
    # Absolute, so that a run finds its data from any folder; still the user's own paths, and not called derived.
    config = config.model_copy(update={"data": _with_absolute_paths(config.data)})
    origins |= dict.fromkeys(_leaves(derived), "derived")
    values = merge([config.model_dump(), derived])
    return Resolved(RunConfig.model_validate(values), origins, tuple(notes))


def _with_absolute_paths(data: DataConfig) -> DataConfig:
    sources = {
        name: source.model_copy(update={"path": source.path and _absolute(source.path)})
        for name, source in data.sources.items()
    }
    return data.model_copy(
        update={
            "path": data.path and _absolute(data.path),
            "cache_dir": data.cache_dir and _absolute(data.cache_dir),
            "sources": sources,
        }
    )


def _absolute(path: str) -> str:
    # Not Path.expanduser, which fails for an unknown user: such a path is looked for as it stands.
    return str(Path(os.path.expanduser(path)).absolute())  # noqa: PTH111
