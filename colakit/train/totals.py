"""What a run has come to so far, apart from what its next step depends on: sums, the best evaluation, the time."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from colakit.records.run import EvalRecord, StepRecord
from colakit.train.metrics import record_of


@dataclass
class Totals:
    """Sums over all steps of a run, whatever number of processes they were made in."""

    steps: int = 0
    tokens: int = 0
    skipped: int = 0
    step_ms: float = 0.0
    data_ms: float = 0.0
    train_s: float = 0.0
    """Of all processes, from the first step to the last checkpoint."""
    first_loss: float | None = None
    last_loss: float | None = None
    evaluation: EvalRecord | None = None
    """The last one."""
    best_loss: float | None = None
    """Of the evaluations."""
    best_step: int | None = None

    def add(self, record: StepRecord) -> None:
        """Count a step."""
        self.steps = record.step
        self.tokens += record.tokens
        self.skipped += record.skipped
        self.step_ms += record.step_ms
        self.data_ms += record.data_ms
        self.first_loss = record.loss if self.first_loss is None else self.first_loss
        self.last_loss = record.loss

    def note(self, record: EvalRecord) -> None:
        """Remember an evaluation."""
        self.evaluation = record
        if math.isfinite(record.val_loss) and (self.best_loss is None or record.val_loss < self.best_loss):
            self.best_loss, self.best_step = record.val_loss, record.step

    def to_dict(self) -> dict[str, Any]:  # Any: JSON values
        """As JSON values, null where a number was not finite."""
        return {**asdict(self), "evaluation": self.evaluation and self.evaluation.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Totals":  # Any: JSON values
        """The inverse. Raises KeyError or TypeError for anything else."""
        evaluation = values["evaluation"] and record_of(values["evaluation"])
        assert not isinstance(evaluation, StepRecord)
        losses = {name: math.nan if values[name] is None else values[name] for name in ("first_loss", "last_loss")}
        return cls(**{**values, **(losses if values["steps"] else {}), "evaluation": evaluation})
