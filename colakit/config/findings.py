"""What a broken rule gives: a `Problem`, and the fields it was found from."""

from collections.abc import Iterator

from colakit.config.schema import RunConfig
from colakit.errors import Problem

# The fields are those the rule reads: it is not reported where one of them already has a problem of its own.
Finding = tuple[Problem, tuple[str, ...]]


def broken(config: RunConfig, is_broken: bool, field: str, rule: str, fix: str, *others: str) -> Iterator[Finding]:
    """The problem of `field` where `is_broken`; `others` are the fields the rule reads besides it."""
    if is_broken:
        yield Problem(field, _shown(value_of(config, field)), rule, fix), (field, *others)


def _shown(value: object) -> object:
    """A value as a message has room for it: of named tables their names, of stages their mixtures."""
    if isinstance(value, dict):
        return list(value)
    if isinstance(value, tuple):
        return [getattr(item, "weights", item) for item in value]
    return value


def value_of(config: RunConfig, field: str) -> object:
    """The value of a dotted field."""
    section, _, key = field.partition(".")
    value: object = getattr(getattr(config, section), key)
    return value
