"""The fields of a `RunConfig` by dotted name, and what is wrong with values given for them."""

import difflib
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from colakit.config.schema import RunConfig
from colakit.errors import Problem

Layer = dict[str, Any]  # Any: TOML values, nested by section


def validate(values: Layer) -> tuple[RunConfig, list[Problem]]:
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
    return RunConfig.model_validate(kept), [p for path, e in wrong.items() for p in _field_problems(path, e)]


def _field_problems(path: str, error: ErrorDetails) -> list[Problem]:
    value = error["input"]
    if error["type"] == "extra_forbidden":
        unknown = {f"{path}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {path: value}
        return [_unknown_field(field, inner) for field, inner in unknown.items()]
    rule = error["msg"][0].lower() + error["msg"][1:]
    if error["type"] == "tuple_type":
        rule = "not a list"
    spelling = " Write true or false." if error["type"] == "bool_type" else ""
    return [Problem(path, value, rule, f"Meaning: {_describe(path)}.{spelling}")]


def _unknown_field(path: str, value: object) -> Problem:
    # First the right key in the wrong section, then what is spelt alike.
    close = [known for known in known_fields() if known.rpartition(".")[2] == path.rpartition(".")[2]]
    close += difflib.get_close_matches(path, known_fields() if "." in path else RunConfig.model_fields, n=1)
    fix = f"Did you mean {close[0]}?" if close else "`colakit presets show cola` lists every field."
    return Problem(path, value, "no such field", fix)


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
