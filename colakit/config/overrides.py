"""``--set section.key=value``: values in TOML, bare words taken as strings, ``none`` as unset where a field can be."""

import tomllib
import types
import typing
from collections.abc import Sequence
from typing import Any, Union

from colakit.config.fields import Layer, known_fields
from colakit.errors import Problem


def parse_sets(sets: Sequence[str]) -> tuple[Layer, list[Problem]]:
    """The values of all ``--set`` strings, later ones winning, and a problem for each that is not of that form."""
    layer: Layer = {}
    problems = []
    for item in sets:
        path, equals, raw = item.partition("=")
        section, dot, key = path.strip().partition(".")
        if not (equals and dot and section and key and "." not in key):
            fix = "Write --set section.key=value, as in --set train.max_steps=100."
            meant = [known for known in known_fields() if known.rpartition(".")[2] == path.strip()]
            fix += f" Did you mean {meant[0]}?" if meant else ""
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
