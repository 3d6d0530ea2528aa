"""What a run measures: its steps, its evaluations, what it came to; how it is listed, and the proof of resuming."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from colakit.records.base import Record


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
    """Of the whole step, the wait for its data included."""
    data_ms: float
    """Of it, the wait for data."""
    skipped: bool
    """True where the update was left out."""
    nan_count: int
    """Skipped steps of the run so far."""
    skip_reason: str | None = None
    """``not finite``, of loss or a gradient, or ``spike``; None where the update was made."""

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
class OptimizerPart:
    """What one part of the optimizer costs in a step."""

    name: str
    """``muon`` or ``adamw``."""
    parameters: int
    ms: float
    """Median over the steps."""
    flops: int
    """Of its matrix products, Newton–Schulz; AdamW has none."""


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
    processes: int
    """Of its last part, where it was resumed."""
    strategy: str | None
    """``parallel.strategy``, of several processes."""
    train_s: float
    tokens_per_s: float
    data_wait_frac: float
    """Share of the steps' time that went in waiting for data."""
    epochs: dict[str, float]
    """How often each source was read through."""
    optimizer: tuple[OptimizerPart, ...]
    """Empty where every update was skipped."""
    data_fingerprint: str
    prompt: str
    sample: str


@dataclass(frozen=True)
class RunListing(Record):
    """A run folder at a glance."""

    kind: ClassVar[str] = "listing"
    folder: str
    preset: str
    steps: int
    """Of the newest checkpoint."""
    max_steps: int
    last_loss: float | None
    """Of the last step that was recorded."""
    state: Literal["running", "finished", "interrupted"]
    resume: str | None
    """The command that goes on; None where there is nothing to go on from, or nothing left to do."""


@dataclass(frozen=True)
class ResumeProof(Record):
    """Whether a run that was killed and resumed comes to what an undisturbed one comes to, byte for byte."""

    kind: ClassVar[str] = "resume_proof"
    preset: str
    device: str
    killed_after: int
    """The step of the checkpoint that was resumed."""
    steps: int
    """The step at which both were compared."""
    weights: bool
    optimizer: bool
    state: bool
    """Generators, data position and whatever else the next step depends on."""
    losses: bool
    """The losses and gradient norms recorded after the kill."""
    seconds: float

    @property
    def is_exact(self) -> bool:
        """Whether everything is equal."""
        return self.weights and self.optimizer and self.state and self.losses
