"""What ``colakit info`` finds in a run, a checkpoint or an exported model."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from colakit.records.base import Record
from colakit.records.machine import MachineRecord
from colakit.records.run import EvalRecord


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file, or ``count`` that are alike but for the number of their block."""

    name: str
    """Of several, with a star for that number."""
    dtype: str
    """As safetensors calls it: ``F32``, ``BF16``."""
    shape: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class ModelShape:
    """Sizes and choices of a colakit model; None where a configuration does not say."""

    d_model: int | None = None
    n_layers: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None
    d_ff: int | None = None
    vocab_size: int | None = None
    seq_len: int | None = None
    linear: str | None = None
    rank: int | None = None
    """None too where every layer takes a quarter of its input's width."""
    fan: str | None = None
    fan_ratio: float | None = None
    norm: str | None = None
    qkv_norm: str | None = None
    tie_embeddings: bool | None = None


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint as it lies on disk."""

    folder: str
    step: int | None
    n_bytes: int
    fault: str | None
    """The first file that is not of the size written, or is missing; None where all are there."""


@dataclass(frozen=True)
class OptimizerInfo:
    """What trains a model, and how fast."""

    name: str
    lr: float
    weight_decay: float
    warmup_steps: int
    batch_size: int


@dataclass(frozen=True)
class TrainingInfo:
    """How far training has come."""

    steps: int | None
    max_steps: int | None
    state: Literal["running", "finished", "interrupted"] | None = None
    """None of what is no run."""
    resume: str | None = None
    """The command that goes on; None where there is nothing to go on from, or nothing left to do."""
    last_loss: float | None = None
    """Of the last step that was recorded, in nats per token."""
    evaluation: EvalRecord | None = None
    """The last one."""
    best_loss: float | None = None
    """Of the evaluations."""
    best_step: int | None = None
    train_s: float | None = None
    """Of all processes, up to the newest checkpoint."""


@dataclass(frozen=True)
class InfoRecord(Record):
    """What is in a folder; None, or empty, what it does not tell."""

    kind: ClassVar[str] = "info"
    path: str
    what: Literal["run", "checkpoint", "export", "transformers"]
    """``export``: of a colakit model, for `transformers`; ``transformers``: any other model of theirs."""
    written: str
    """The time of its newest part, as the file system has it."""
    model_type: str | None = None
    """As `transformers` calls it."""
    architectures: tuple[str, ...] = ()
    preset: str | None = None
    model: ModelShape | None = None
    parameters: int | None = None
    """Entries of all tensors in the files; None where none is saved yet."""
    expected_parameters: int | None = None
    """By the closed formula, for the configuration."""
    tensors: tuple[TensorInfo, ...] = ()
    tokenizer: str | None = None
    tokenizer_tokens: int | None = None
    training: TrainingInfo | None = None
    optimizer: OptimizerInfo | None = None
    sources: dict[str, str] = field(default_factory=dict)
    """What each source of the data reads."""
    data_fingerprint: str | None = None
    machine: MachineRecord | None = None
    """That the run began on; of a checkpoint, that it was written on."""
    checkpoints: tuple[CheckpointInfo, ...] = ()
