"""What was exported."""

from dataclasses import dataclass
from typing import ClassVar

from colakit.records.base import Record


@dataclass(frozen=True)
class ExportRecord(Record):
    """A folder that `transformers` loads."""

    kind: ClassVar[str] = "export"
    folder: str
    model: str
    """The run or checkpoint it was made of."""
    preset: str
    step: int | None
    parameters: int
    is_standalone: bool
    """Whether it brings colakit's code along."""
    files: tuple[str, ...]
