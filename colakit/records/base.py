"""What all records share, and how they become JSON. ``SCHEMA_VERSION`` rises when a field changes name or meaning."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Record:
    """Base of all records."""

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:  # Any: JSON values
        """The record as JSON-ready values, its `kind` first; records within are dicts too."""
        return {"kind": self.kind, **asdict(self)}


def to_json(value: Any, indent: int | None = None) -> str:  # Any: JSON values
    """`value` as strict JSON, on one line unless indented: NaN and infinities, which JSON has not, become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _finite(value: Any) -> Any:  # Any: JSON values
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
