"""The fields of a `RunConfig` by dotted name, and what is wrong with values given for them."""

import difflib
import re
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from colakit.config.schema import DataConfig, RunConfig, SourceConfig, StageConfig
from colakit.errors import Problem

Layer = dict[str, Any]  # Any: TOML values, nested by section


def validate(values: Layer) -> tuple[RunConfig, list[Problem]]:
    """Validate `values`; where some are wrong, report them and go on with the defaults in their place."""
    try:
        return RunConfig.model_validate(values), []
    except ValidationError as error:
        errors = error.errors()
    wrong = {".".join(map(str, e["loc"][:2])) for e in errors}
    kept = {
        section: {k: v for k, v in inner.items() if f"{section}.{k}" not in wrong} if isinstance(inner, dict) else inner
        for section, inner in values.items()
        if section not in wrong
    }
    return RunConfig.model_validate(kept), [p for e in errors for p in _problems(e)]


def field_of(path: str) -> str:
    """The dotted field that a problem's place is in: ``data.stages`` of ``data.stages[2].weights.web``."""
    return ".".join(re.split(r"[.\[]", path)[:2])


def _place(location: tuple[int | str, ...]) -> str:
    """``("data", "stages", 1, "weights")`` as ``data.stages[2].weights``: stages are counted from 1."""
    path = ""
    for part in location:
        path += f"[{part + 1}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")


def _problems(error: ErrorDetails) -> list[Problem]:
    location, value = error["loc"], error["input"]
    if error["type"] == "extra_forbidden":
        unknown = [(*location, key) for key in value] if len(location) == 1 and isinstance(value, dict) else [location]
        return [_unknown_field(each, value if each == location else value[each[-1]]) for each in unknown]
    rule = error["msg"][0].lower() + error["msg"][1:]
    rule = rule.removeprefix("value error, ")
    if error["type"] == "tuple_type":
        rule = "not a list"
    if error["type"] == "string_pattern_mismatch":
        rule = "not of the form it must have"
    spelling = " Write true or false." if error["type"] == "bool_type" else ""
    return [Problem(_place(location), value, rule, f"Meaning: {_describe(location)}.{spelling}")]


def _unknown_field(location: tuple[int | str, ...], value: object) -> Problem:
    path, name = _place(location), str(location[-1])
    inner = _inner_fields(location)
    if inner is not None:
        known = list(inner)
        close = difflib.get_close_matches(name, known, n=1)
        if not close and name in DataConfig.model_fields:
            return Problem(path, value, "no such field", f"It is of all the data: set it under [data] as {name}.")
    else:
        # First the right key in the wrong section, then what is spelt alike.
        known = list(known_fields())
        close = [field for field in known if field.rpartition(".")[2] == name]
        close += difflib.get_close_matches(path, known if "." in path else RunConfig.model_fields, n=1)
    listing = (
        f"The fields: {', '.join(known)}." if inner is not None else "`colakit presets show cola` lists every field."
    )
    return Problem(path, value, "no such field", f"Did you mean {close[0]}?" if close else listing)


def _inner_fields(location: tuple[int | str, ...]) -> dict[str, FieldInfo] | None:
    """The fields of a source or stage, for a place in one; None elsewhere."""
    if len(location) < 4 or location[0] != "data":
        return None
    tables: dict[int | str, type[BaseModel]] = {"sources": SourceConfig, "stages": StageConfig}
    table = tables.get(location[1])
    return dict(table.model_fields) if table is not None else None


def known_fields() -> dict[str, Any]:
    """Every dotted field of a `RunConfig`, with its pydantic FieldInfo."""
    fields: dict[str, Any] = {}
    for section, info in RunConfig.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            fields |= {f"{section}.{key}": inner for key, inner in annotation.model_fields.items()}
    return fields


def _describe(location: tuple[int | str, ...]) -> str:
    inner = _inner_fields(location)
    info = inner.get(str(location[3])) if inner is not None else known_fields().get(_place(location[:2]))
    return str(info.description) if info is not None else "a table of fields"
