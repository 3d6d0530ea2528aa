"""Two reports of ``colakit bench`` beside each other: what has become slower, or larger."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from colakit.errors import RunError
from colakit.records.base import SCHEMA_VERSION
from colakit.records.bench import BenchReport, ComparisonRecord

_MACHINE = ("platform", "cpu", "cpu_capability", "products", "threads", "gpu", "driver", "cuda", "python", "packages")
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class Entry(BaseModel):
    """What is compared of a preset or a peer, and all that has to be equal for it."""

    name: str | None = None
    preset: str
    optimizer: str | None = None
    batch_size: int
    micro_batch_size: int | None = None
    seq_len: int
    dtype: str
    attention: str | None = None
    compiled: bool = False
    processes: int = 1
    strategy: str | None = None
    model_flops: int | None = None
    parameters: int | None = None
    tokens_per_s: Positive | None
    peak_memory_gib: Positive | None

    @property
    def key(self) -> str:
        """Equal where the same is measured."""
        return self.model_dump_json(exclude={"tokens_per_s", "peak_memory_gib"})

    @property
    def title(self) -> str:
        """Whose figures they are."""
        name = self.name or self.preset
        name += f", {self.strategy} x {self.processes}" if self.processes > 1 else ""
        return f"{name}, compiled" if self.compiled else name


class Report(BaseModel):
    """What is compared of a report."""

    machine: dict[str, Any]  # Any: JSON values
    results: list[Entry]
    peers: list[Entry]

    def measured(self) -> Iterator[Entry]:
        """Everyone who has a speed."""
        return (entry for entry in (*self.results, *self.peers) if entry.tokens_per_s is not None)


def read_report(path: Path) -> Report:
    """A report that ``bench --out`` or ``--json`` has written. Raises RunError for any other file."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise RunError(
            f"{path} cannot be read as a report: {what}. `colakit bench --out FILE.json` makes one."
        ) from error
    if not isinstance(values, dict) or values.get("kind") != BenchReport.kind:
        raise RunError(
            f"{path} is no report of speeds. `colakit bench --out FILE.json` makes one, without --max-batch and "
            "--optimizer-only."
        )
    if values.get("schema") != SCHEMA_VERSION:
        raise RunError(f"{path} was written by another version of colakit. Measure again.")
    try:
        return Report.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunError(f"{path} is damaged: {where}: {first['msg']}. Measure again.") from error


def compare(before: Report, after: Report, threshold_frac: float) -> list[ComparisonRecord]:
    """Everyone who has a speed in `before`, worse where it lost more than `threshold_frac`, in speed or in memory.

    Raises RunError where nobody has.
    """
    found = {entry.key: entry for entry in after.measured()}
    records = [_compared(entry, found.get(entry.key), threshold_frac) for entry in before.measured()]
    if not records:
        raise RunError("The first report has no speed to compare with. Measure again, with a larger --budget-s.")
    if all(record.speed is None for record in records):
        raise RunError(
            "Nothing of the first report was measured in the second with the same preset, sizes, type, optimizer and "
            "attention. Run `colakit bench` with the same options for both."
        )
    return records


def differences(before: Report, after: Report) -> list[str]:
    """What of the machines and versions differs, in words: then a change may not be the code's."""
    pairs = ((name, before.machine.get(name), after.machine.get(name)) for name in _MACHINE)
    return [f"{name}: {one} before, {other} after" for name, one, other in pairs if one != other]


def _compared(before: Entry, after: Entry | None, threshold_frac: float) -> ComparisonRecord:
    assert before.tokens_per_s is not None
    speed = memory = None
    if after is not None and after.tokens_per_s is not None:
        speed = after.tokens_per_s / before.tokens_per_s
        if before.peak_memory_gib and after.peak_memory_gib:
            memory = after.peak_memory_gib / before.peak_memory_gib
    return ComparisonRecord(
        name=before.title,
        batch_size=before.batch_size,
        seq_len=before.seq_len,
        before_tokens_per_s=before.tokens_per_s,
        after_tokens_per_s=after.tokens_per_s if after is not None else None,
        speed=speed,
        peak_memory=memory,
        is_worse=speed is None or speed < 1.0 - threshold_frac or (memory or 0.0) > 1.0 + threshold_frac,
    )
