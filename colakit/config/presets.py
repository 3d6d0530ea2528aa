"""Preset files: the shipped ones by name, a user's own by path, which may change a shipped one named as ``base``.

What is in them is checked in `load`.
"""

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from colakit.config.fields import Layer
from colakit.config.schema import SourceConfig
from colakit.errors import ConfigError, Problem


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
    "smollm2-stages",
)


def load_preset(name_or_file: str) -> Preset:
    """Read a shipped preset by name, or a preset file by path (a name that ends in ``.toml``).

    Raises ConfigError for a name that is not shipped, and for a file that is missing or not TOML.
    """
    if name_or_file.endswith(".toml"):
        path = Path(name_or_file)
        try:
            text = path.read_text(encoding="utf-8-sig")  # Notepad writes a byte order mark
        except (OSError, UnicodeDecodeError) as error:
            raise _preset_error(name_or_file, f"the file cannot be read ({error})", "Check the path.") from None
        return _parse_preset(path.stem, name_or_file, text)
    names = preset_names()
    if name_or_file not in names:
        close = difflib.get_close_matches(name_or_file, names, n=2, cutoff=0.4)
        guess = f"Did you mean {' or '.join(close)}? " if close else ""
        fix = f"{guess}`colakit presets` lists them; a file of your own ends in .toml."
        raise _preset_error(name_or_file, "no preset has this name", fix)
    return _shipped(name_or_file)


def _shipped(name: str) -> Preset:
    return _parse_preset(name, name, _presets_folder().joinpath(f"{name}.toml").read_text("utf-8"))


def _over_base(values: Layer, origin: str) -> Layer:
    """`values` over those of the shipped preset that ``base`` names, if it does. Raises ConfigError."""
    base = values.pop("base", None)
    if base is None:
        return values
    if base not in preset_names():
        fix = f"Name a shipped preset: {', '.join(preset_names())}."
        raise ConfigError([Problem("base", base, "no shipped preset has this name", fix)], of=origin)
    below = _shipped(base).values
    if isinstance(data := values.get("data"), dict) and ("source" in data or "sources" in data):
        # Where text comes from is one whole: of the base's sources nothing is left, nor of how their text is cleaned.
        own = SourceConfig.model_fields.keys() | {
            "sources",
            "stages",
            "remove_urls",
            "remove_crawl_markers",
            "min_words",
        }
        below = {**below, "data": {k: v for k, v in below.get("data", {}).items() if k not in own}}
    return merge([below, values])


def merge(layers: Iterable[Layer]) -> Layer:
    """One layer of several, each field of the last that has it."""
    merged: Layer = {}
    for layer in layers:
        for section, values in layer.items():
            if isinstance(values, dict) and isinstance(merged.get(section), dict):
                merged[section] = {**merged[section], **values}
            else:
                merged[section] = dict(values) if isinstance(values, dict) else values
    return merged


def _preset_error(value: str, rule: str, fix: str) -> ConfigError:
    return ConfigError([Problem("preset", value, rule, fix)])


def _parse_preset(name: str, origin: str, text: str) -> Preset:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _preset_error(origin, f"not valid TOML: {error}", "Mend the file.") from None
    about = values.pop("about", {"summary": "a preset of your own", "paper": "none"})
    try:
        return Preset(name, PresetAbout.model_validate(about), _over_base(values, origin))
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
