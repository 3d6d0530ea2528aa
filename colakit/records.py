"""What was measured or counted, as frozen records: units in the names, ``None`` where a figure cannot be had.

Tables, TensorBoard, ``metrics.jsonl`` and ``--json`` read these and nothing else. ``SCHEMA_VERSION`` rises when a
field changes its name or meaning.
"""

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


@dataclass(frozen=True)
class StepRecord(Record):
    """One optimizer step. ``loss`` is the mean over its ``tokens`` real targets, in nats, before the update."""

    kind: ClassVar[str] = "step"
    step: int
    loss: float
    accuracy: float
    """Share of the step's targets that were the most probable token, 0 to 1."""
    bits_per_byte: float | None
    """None where the tokenizer does not map its tokens to bytes."""
    lr: float
    grad_norm: float
    tokens: int
    step_ms: float
    skipped: bool
    """True where a loss or gradient was not finite, so that the update was left out."""
    nan_count: int
    """Skipped steps of the run so far."""

    @property
    def it_per_s(self) -> float:
        """Optimizer steps per second."""
        return 1000.0 / self.step_ms

    @property
    def tokens_per_s(self) -> float:
        """Real tokens per second."""
        return self.tokens * 1000.0 / self.step_ms


@dataclass(frozen=True)
class EvalRecord(Record):
    """Held-out metrics over ``tokens`` real targets that stand for ``text_bytes`` bytes of text."""

    kind: ClassVar[str] = "eval"
    step: int
    val_loss: float
    """Nats per token."""
    perplexity: float
    bits_per_byte: float | None
    """None where the tokenizer does not map its tokens to bytes."""
    accuracy: float
    """Share of targets that were the most probable token, 0 to 1."""
    tokens: int
    text_bytes: int | None
    eval_s: float


@dataclass(frozen=True)
class RunSummary(Record):
    """What a finished or interrupted training run reached."""

    kind: ClassVar[str] = "run"
    preset: str
    run_dir: str
    steps: int
    interrupted: bool
    first_loss: float
    last_loss: float
    val_loss: float
    bits_per_byte: float | None
    gzip_bits_per_byte: float | None
    """``gzip -9`` on the same held-out text."""
    accuracy: float
    tokens_seen: int
    nan_count: int
    parameters: int
    train_s: float
    tokens_per_s: float
    data_fingerprint: str
    prompt: str
    sample: str


@dataclass(frozen=True)
class BenchRecord(Record):
    """Speed and peak memory of one preset at one batch size; what could not be had is None, with the reason."""

    kind: ClassVar[str] = "bench"
    preset: str
    batch_size: int
    seq_len: int
    device: str
    dtype: str
    attention: str
    steps: int
    it_per_s: float | None
    """Optimizer steps per second, from the median step time."""
    examples_per_s: float | None
    tokens_per_s: float | None
    step_ms: float | None
    vram_gib: float | None
    """Peak memory that torch allocated on the GPU."""
    rss_gib: float | None
    """Peak resident memory of the measuring process."""
    reason: str | None


@dataclass(frozen=True)
class ParamRecord(Record):
    """Parameters of one component of one model."""

    kind: ClassVar[str] = "params"
    preset: str
    component: str
    parameters: int


@dataclass(frozen=True)
class FlopRecord(Record):
    """Floating point operations of one component, a multiply and an add counted as two."""

    kind: ClassVar[str] = "flops"
    component: str
    formula: str
    flops: int
