"""What lm-evaluation-harness made of a model."""

from dataclasses import dataclass
from typing import ClassVar

from colakit.records.base import Record


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task."""

    task: str
    metric: str
    """With the filter that answers went through, where it is not ``none``."""
    value: float
    stderr: float | None
    examples: int | None
    """None of a group, which has those of its tasks."""
    shots: int


@dataclass(frozen=True)
class TasksRecord(Record):
    """The scores of a model, as the harness reports them."""

    kind: ClassVar[str] = "tasks"
    model: str
    step: int | None
    harness: str
    """Version of lm-evaluation-harness."""
    limit: int | None
    """Only so many examples of each task were read; None: all."""
    scores: tuple[TaskScore, ...]
