"""``metrics.jsonl`` read again: what a resumed run goes on behind."""

import json
from pathlib import Path
from typing import Any

from colakit.data.cache import write_whole
from colakit.records.run import EvalRecord, StepRecord

_KINDS: dict[str, type[StepRecord] | type[EvalRecord]] = {"step": StepRecord, "eval": EvalRecord}
_TAIL_BYTES = 64 * 1024
_MAY_BE_NONE = frozenset({"bits_per_byte", "text_bytes", "skip_reason"})


def trim(path: Path, step: int) -> None:
    """Cut off the records behind `step`, and what a kill left half-written.

    The file is replaced as a whole, so that a kill leaves the one or the other.
    """
    lines = _lines(path)
    # Records lie in the order of their steps: only the last ones need be read.
    while lines and _parse(lines[-1]).get("step", step + 1) > step:
        lines.pop()
    write_whole(path, lambda partial: partial.write_bytes(b"".join(lines)))


def last_records(path: Path) -> list[StepRecord | EvalRecord]:
    """The records of the last step; none where there is no file."""
    found: list[StepRecord | EvalRecord] = []
    for values in map(_parse, reversed(_tail(path))):
        if found and values.get("step") != found[0].step:
            break
        if values:
            try:
                found.insert(0, record_of(values))
            except (KeyError, TypeError):
                break  # of another version of colakit
    return found


def last_step(path: Path, up_to: int | None = None) -> tuple[int, float | None]:
    """The last step, no later than `up_to`, and its loss, whatever version wrote it; None where it was not finite.

    Step 0 where there is none.
    """
    for values in map(_parse, reversed(_tail(path))):
        step = values.get("step")
        if values.get("kind") == "step" and isinstance(step, int) and (up_to is None or step <= up_to):
            return step, values.get("loss")
    return 0, None


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def _tail(path: Path) -> list[bytes]:
    """The last lines, more than a step has; the first of them may be cut."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().splitlines(keepends=True)


def _parse(line: bytes) -> dict[str, Any]:  # Any: JSON values
    """The record; nothing where the line is none."""
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) and line.endswith(b"\n") else {}


def record_of(json_values: dict[str, Any]) -> StepRecord | EvalRecord:  # Any: JSON values
    """The inverse of `Record.to_dict`: where JSON has null for what is always a number, it was not finite."""
    values = dict(json_values)
    kind = values.pop("kind")
    lost = [name for name, value in values.items() if value is None and name not in _MAY_BE_NONE]
    return _KINDS[kind](**{**values, **dict.fromkeys(lost, float("nan"))})
