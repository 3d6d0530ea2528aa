"""From a preset, ``--smoke``, ``--data`` and ``--set`` to one `RunConfig`, with the origin of every value.

Later wins: schema default, preset, ``--smoke``, ``--data``, ``--set``; then values derived from the rest. All problems
are collected and raised as one `ConfigError`.
"""

import difflib
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Union

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from colakit.config import rules, smoke
from colakit.config.schema import RunConfig
from colakit.errors import ConfigError, Problem

Layer = dict[str, Any]  # Any: TOML values, nested by section


class PresetAbout(BaseModel):
    """The ``[about]`` table of a preset file: what it is, and which row of the paper it reproduces."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    summary: str
    paper: str


@dataclass(frozen=True)
class Preset:
    """A preset file: its values differ from the schema's defaults."""

    name: str
    about: PresetAbout
    values: Layer


@dataclass(frozen=True)
class Resolved:
    """A validated configuration, and where each of its values came from."""

    config: RunConfig
    origins: Mapping[str, str]
    """Dotted field → ``default``, ``preset``, ``--smoke``, ``--data``, ``--set`` or ``derived``."""
    notes: tuple[str, ...] = field(default=())
    """What was derived that the user may want to know, a sentence each."""


def _presets_folder() -> Traversable:
    """``colakit/presets`` of an installed wheel, ``presets/`` beside the package in a source tree."""
    packaged = resources.files("colakit").joinpath("presets")
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "presets"


def preset_names() -> list[str]:
    """The shipped presets, in the order of the paper's rows."""
    names = {p.name.removesuffix(".toml") for p in _presets_folder().iterdir() if p.name.endswith(".toml")}
    return [n for n in _PAPER_ORDER if n in names] + sorted(names - set(_PAPER_ORDER))


_PAPER_ORDER = (
    "original",
    "cola",
    "cola-smollm2",
    "cola-smollm2-muon",
    "cola-fan",
    "cola-fan-muon",
    "cola-fan-dropout",
    "cola-fan-dropout-muon",
    "cola-m",
    "cola-fan-atf",
    "refined",
    "refined-tied",
)


def load_preset(name_or_file: str) -> Preset:
    """Read a shipped preset by name, or a preset file by path (a name that ends in ``.toml``).

    Raises ConfigError for a name that is not shipped, and for a file that is missing or not TOML.
    """
    if name_or_file.endswith(".toml"):
        path = Path(name_or_file)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _preset_error(name_or_file, f"the file cannot be read ({error})", "Check the path.") from None
        return _parse_preset(path.stem, name_or_file, text)
    names = preset_names()
    if name_or_file not in names:
        close = difflib.get_close_matches(name_or_file, names, n=2, cutoff=0.4)
        guess = f"Did you mean {' or '.join(close)}? " if close else ""
        fix = f"{guess}`colakit presets` lists them; a file of your own ends in .toml."
        raise _preset_error(name_or_file, "no preset has this name", fix)
    return _parse_preset(
        name_or_file,
        name_or_file,
        _presets_folder().joinpath(f"{name_or_file}.toml").read_text("utf-8"),
    )


def _preset_error(value: str, rule: str, fix: str) -> ConfigError:
    return ConfigError([Problem("preset", value, rule, fix)])


def _parse_preset(name: str, origin: str, text: str) -> Preset:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _preset_error(origin, f"not valid TOML: {error}", "Mend the file.") from None
    about = values.pop("about", {"summary": "a preset of your own", "paper": "none"})
    try:
        return Preset(name, PresetAbout.model_validate(about), values)
    except ValidationError as error:
        problems = [
            Problem(
                f"about.{e['loc'][0]}" if e["loc"] else "about",
                e["input"],
                e["msg"],
                "Mend the preset's [about].",
            )
            for e in error.errors()
        ]
        raise ConfigError(problems) from None


def resolve(preset: str, *, smoke_run: bool = False, data: str | None = None, sets: Sequence[str] = ()) -> Resolved:
    """Build the configuration of `preset` under the given overrides.

    `data` is a local file, folder or glob (``--data``); `sets` are ``section.key=value`` strings (``--set``): values in
    TOML, bare words taken as strings, and ``none`` as unset where the field can be. Raises ConfigError with every
    problem found.
    """
    loaded = load_preset(preset)
    problems: list[Problem] = []
    layers: list[tuple[str, Layer]] = [("preset", loaded.values)]
    if smoke_run:
        # The overlay looks at the preset's kind alone; a preset with problems is reported below with everything else.
        base, base_problems = _validate(_merge(layer for _, layer in layers))
        # All but a section that is not a table: the overlay would put one in its place.
        problems += [p for p in base_problems if p.field in RunConfig.model_fields]
        layers.append(("--smoke", smoke.overlay(base)))
    if data is not None:
        cleared = {"dataset": None, "dataset_config": None}
        layers.append(("--data", {"data": {"source": "files", "path": data, **cleared}}))
    set_layer, set_problems = _parse_sets(sets)
    layers.append(("--set", set_layer))
    problems += set_problems

    merged = _merge(layer for _, layer in layers)
    if "preset" in merged:
        fix = "Leave it out: a preset is called as its file is."
        problems.append(Problem("preset", merged["preset"], "not a field to be set", fix))
    config, field_problems = _validate({**merged, "preset": loaded.name})
    problems += field_problems
    broken = {p.field for p in problems}
    explicit = frozenset(_leaves(set_layer))
    for problem, fields in (*rules.check(config), *rules.check_explicit(config, explicit)):
        if broken.isdisjoint(fields):
            problems.append(problem)
    if problems:
        raise ConfigError(problems)
    return _derive(config, _origins(config, layers))


def from_saved(values: Layer) -> RunConfig:
    """The `RunConfig` of a run folder's ``config.json``. Raises ConfigError where it does not fit this version."""
    if not isinstance(values, dict):  # whatever JSON the file held
        raise ConfigError([Problem("config", values, "not a table of sections", "Restore the run's config.json.")])
    config, problems = _validate(values)
    if problems:
        raise ConfigError(problems)
    return config


def _merge(layers: Iterator[Layer] | Sequence[Layer]) -> Layer:
    merged: Layer = {}
    for layer in layers:
        for section, values in layer.items():
            if isinstance(values, dict) and isinstance(merged.get(section), dict):
                merged[section] = {**merged[section], **values}
            else:
                merged[section] = dict(values) if isinstance(values, dict) else values
    return merged


def _leaves(values: Layer) -> Iterator[str]:
    for section, inner in values.items():
        if isinstance(inner, dict):
            yield from (f"{section}.{key}" for key in inner)
        else:
            yield section


def _validate(values: Layer) -> tuple[RunConfig, list[Problem]]:
    """Validate `values`; where some are wrong, report them and go on with the defaults in their place."""
    try:
        return RunConfig.model_validate(values), []
    except ValidationError as error:
        errors = error.errors()
    wrong = {".".join(map(str, e["loc"][:2])): e for e in errors}
    kept = {
        section: {k: v for k, v in inner.items() if f"{section}.{k}" not in wrong} if isinstance(inner, dict) else inner
        for section, inner in values.items()
        if section not in wrong
    }
    return RunConfig.model_validate(kept), [_field_problem(path, e) for path, e in wrong.items()]


def _field_problem(path: str, error: ErrorDetails) -> Problem:
    if error["type"] == "extra_forbidden":
        # First the right key in the wrong section, then what is spelt alike.
        close = [known for known in known_fields() if known.rpartition(".")[2] == path.rpartition(".")[2]]
        close += difflib.get_close_matches(path, known_fields() if "." in path else RunConfig.model_fields, n=1)
        fix = f"Did you mean {close[0]}?" if close else "`colakit presets show cola` lists every field."
        return Problem(path, error["input"], "no such field", fix)
    rule = error["msg"][0].lower() + error["msg"][1:]
    spelling = " Write true or false." if error["type"] == "bool_type" else ""
    return Problem(path, error["input"], rule, f"It is {_describe(path)}.{spelling}")


def known_fields() -> dict[str, Any]:
    """Every dotted field of a `RunConfig`, with its pydantic FieldInfo."""
    fields: dict[str, Any] = {}
    for section, info in RunConfig.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            fields |= {f"{section}.{key}": inner for key, inner in annotation.model_fields.items()}
    return fields


def _describe(path: str) -> str:
    info = known_fields().get(path)
    return info.description if info is not None else "a table of fields"


def _parse_sets(sets: Sequence[str]) -> tuple[Layer, list[Problem]]:
    layer: Layer = {}
    problems = []
    for item in sets:
        path, equals, raw = item.partition("=")
        section, dot, key = path.strip().partition(".")
        if not (equals and dot and section and key and "." not in key):
            fix = "Write --set section.key=value, as in --set train.max_steps=100."
            problems.append(Problem("--set", item, "not of the form section.key=value", fix))
            continue
        layer.setdefault(section, {})[key] = _parse_value(f"{section}.{key}", raw.strip())
    return layer, problems


def _parse_value(path: str, raw: str) -> Any:  # Any: a TOML value
    """`raw` as TOML; a bare word is a string, and so is a number where the field only takes strings."""
    info = known_fields().get(path)
    accepted = _accepted_types(info.annotation) if info is not None else set()
    if raw == "none" and type(None) in accepted and not _is_choice(info.annotation if info else None, "none"):
        return None
    try:
        table = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        return raw
    value = table["value"]
    if len(table) > 1:  # more lines than one: not a value
        return raw
    if not isinstance(value, str) and accepted and accepted <= {str, type(None)}:
        return raw
    return value


def _accepted_types(annotation: Any) -> set[Any]:  # Any: a typing construct
    origin = typing.get_origin(annotation)
    if origin in (Union, types.UnionType):
        return set().union(*(_accepted_types(a) for a in typing.get_args(annotation)))
    if origin is typing.Annotated:
        return _accepted_types(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return {type(choice) for choice in typing.get_args(annotation)}
    return {annotation}


def _is_choice(annotation: Any, value: str) -> bool:  # Any: a typing construct
    return value in typing.get_args(annotation) or any(
        _is_choice(a, value) for a in typing.get_args(annotation) if typing.get_args(a)
    )


def _origins(config: RunConfig, layers: Sequence[tuple[str, Layer]]) -> dict[str, str]:
    origins = dict.fromkeys(known_fields(), "default")
    for origin, layer in layers:
        origins |= dict.fromkeys(_leaves(layer), origin)
    return origins


def _derive(config: RunConfig, origins: dict[str, str]) -> Resolved:
    """Fill in what follows from the rest: the warm-up of a short run, the micro-batch, the norm of Q, K, V."""
    notes = []
    derived: Layer = {"optim": {}, "train": {}, "model": {}}
    warmup, steps = config.optim.warmup_steps, config.train.max_steps
    if warmup >= steps:
        derived["optim"]["warmup_steps"] = max(1, steps // 10)
        notes.append(f"optim.warmup_steps is {max(1, steps // 10)} instead of {warmup}: the run has {steps} steps.")
    if config.train.micro_batch_size != config.train.effective_micro_batch_size:
        derived["train"]["micro_batch_size"] = config.train.effective_micro_batch_size
    if config.model.qkv_norm is None:
        derived["model"]["qkv_norm"] = config.model.effective_qkv_norm
    origins |= dict.fromkeys(_leaves(derived), "derived")
    values = _merge([config.model_dump(), derived])
    return Resolved(RunConfig.model_validate(values), origins, tuple(notes))
