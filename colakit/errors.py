"""The errors that are the user's to mend: one clear message, exit code 2. Anything else is a bug: traceback, exit 1."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class ColakitError(Exception):
    """Base of all errors whose message is written for the user."""


class DataError(ColakitError):
    """A source, tokenizer or split that cannot be used: names the file (and line), and what to do."""


class CheckpointError(ColakitError):
    """A saved run that is missing, incomplete or does not fit."""


class RunError(ColakitError):
    """A run folder that cannot be created or written."""


class FigureError(ColakitError):
    """A figure that cannot be written where it should go."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration: which field, what value, which rule, what to do."""

    field: str
    value: object
    rule: str
    fix: str

    def __str__(self) -> str:
        return f"{self.field} = {self.value!r}: {self.rule}. {self.fix}"


class ConfigError(ColakitError):
    """All problems of one configuration, shown together."""

    def __init__(self, problems: Sequence[Problem], *, of: str | None = None) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{'1 problem' if count == 1 else f'{count} problems'} in the configuration{f' of {of}' if of else ''}:"
        super().__init__("\n".join([head, *(f"  {p}" for p in self.problems)]))


def disk_fault(path: Path, error: OSError) -> str:
    """What is wrong with the file of `error`, or `path` where it names none, and what to do about it."""
    # Libraries that wrap the system's error lose its number; a full disk is then the likeliest.
    is_full = error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "Free some space there." if is_full else "Check that it is there, and its permissions."
    return f"{error.filename or path} cannot be read or written: {error.strerror or error}. {advice}"
