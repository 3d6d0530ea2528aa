"""Two reports of ``colakit bench`` beside each other: what has become slower, or larger."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from colakit.errors import RunError
from colakit.records.base import SCHEMA_VERSION
from colakit.records.bench import BenchReport, ComparisonRecord

Report = dict[str, Any]  # Any: JSON values
_KEYS = ("batch_size", "seq_len", "dtype", "compiled")


def read_report(path: Path) -> Report:
    """A report that ``bench --out`` or ``--json`` has written. Raises RunError for any other file."""
    try:
        report = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise RunError(f"{path} cannot be read as a report: {what}. `colakit bench --out {path}` makes one.") from error
    if not isinstance(report, dict) or report.get("kind") != BenchReport.kind:
        raise RunError(f"{path} is no report of speeds. `colakit bench --out FILE.json` without --max-batch makes one.")
    if report.get("schema") != SCHEMA_VERSION:
        raise RunError(f"{path} was written by another version of colakit. Measure again.")
    return report


def compare(before: Report, after: Report, threshold_frac: float) -> list[ComparisonRecord]:
    """Everyone who has a speed in `before`, worse where it lost more than `threshold_frac`, in speed or in memory.

    Raises RunError where nobody has.
    """
    found = dict(_contestants(after))
    records = [_compared(key, entry, found.get(key), threshold_frac) for key, entry in _contestants(before)]
    if not records:
        raise RunError("The first report has no speed to compare with. Measure again, with a larger --budget-s.")
    return records


def differences(before: Report, after: Report) -> list[str]:
    """What of the machines and versions differs, in words: then a change may not be the code's."""
    return [
        f"{name}: {before['machine'][name]} before, {after['machine'].get(name)} after"
        for name in ("cpu", "cpu_capability", "threads", "gpu", "driver", "cuda", "packages")
        if before["machine"][name] != after["machine"].get(name)
    ]


def _contestants(report: Report) -> Iterator[tuple[tuple[object, ...], Report]]:
    for entry in (*report["results"], *report["peers"]):
        if entry["tokens_per_s"] is not None:
            yield (entry.get("name"), entry["preset"], *(entry.get(key) for key in _KEYS)), entry


def _compared(key: tuple[object, ...], before: Report, after: Report | None, threshold_frac: float) -> ComparisonRecord:
    speed = after["tokens_per_s"] / before["tokens_per_s"] if after is not None else None
    memory = None
    if after is not None and before["peak_memory_gib"] and after["peak_memory_gib"]:
        memory = after["peak_memory_gib"] / before["peak_memory_gib"]
    name = before.get("name") or before["preset"]
    return ComparisonRecord(
        name=f"{name}, compiled" if before.get("compiled") else name,
        batch_size=before["batch_size"],
        seq_len=before["seq_len"],
        before_tokens_per_s=before["tokens_per_s"],
        after_tokens_per_s=after["tokens_per_s"] if after is not None else None,
        speed=speed,
        peak_memory=memory,
        is_worse=speed is None or speed < 1.0 - threshold_frac or (memory or 0.0) > 1.0 + threshold_frac,
    )
