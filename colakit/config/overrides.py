"""``--set section.key=value``: values in TOML, bare words taken as strings, ``none`` as unset where a field can be.

A field of one source of several is ``data.sources.name.key``.
"""

import tomllib
import types
import typing
from collections.abc import Sequence
from typing import Any, Union

from pydantic.fields import FieldInfo

from colakit.config.fields import Layer, known_fields
from colakit.config.schema import SourceConfig
from colakit.errors import Problem


def parse_sets(sets: Sequence[str], below: Layer) -> tuple[Layer, list[Problem]]:
    """The values of all ``--set`` strings, later ones winning, and a problem for each that is not of that form.

    `below` is what they are put over. A source of it that has a field set is whole in the result.
    """
    layer: Layer = {}
    problems = []
    for item in sets:
        path, equals, raw = item.partition("=")
        keys = path.strip().split(".")
        is_of_source = len(keys) == 4 and keys[:2] == ["data", "sources"]
        if not (equals and all(keys) and (len(keys) == 2 or is_of_source)):
            fix = "Write --set section.key=value, as in --set train.max_steps=100."
            meant = [known for known in known_fields() if known.rpartition(".")[2] == path.strip()]
            fix += f" Did you mean {meant[0]}?" if meant else ""
            problems.append(Problem("--set", item, "not of the form section.key=value", fix))
            continue
        section, key = layer.setdefault(keys[0], {}), keys[-1]
        if not is_of_source:
            section[key] = _parse_value(raw.strip(), known_fields().get(".".join(keys)))
            continue
        sources = _tables(section.get("sources", below.get("data", {}).get("sources")))
        if (source := sources.get(keys[2])) is not None:
            source[key] = _parse_value(raw.strip(), SourceConfig.model_fields.get(key))
            section["sources"] = sources
        else:
            there = f"There are {', '.join(sources)}." if sources else "There is one, without a name: set data.KEY."
            problems.append(Problem("--set", item, f"no source is called {keys[2]}", there))
    return layer, problems


def _tables(value: object) -> dict[str, Layer]:
    """Copies of the tables in `value`, if it is a table."""
    tables = value.items() if isinstance(value, dict) else ()
    return {name: dict(table) for name, table in tables if isinstance(table, dict)}


def _parse_value(raw: str, info: FieldInfo | None) -> Any:  # Any: a TOML value
    """`raw` as TOML; a bare word is a string, and so is a number where the field `info` only takes strings."""
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
