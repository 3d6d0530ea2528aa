"""What a saved model reaches on a text: the scores of all of it, and of each source."""

from dataclasses import dataclass
from typing import ClassVar

from colakit.records.base import Record


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens (or bytes), and where the mean of other documents like these would lie."""

    value: float
    low: float | None
    """Lower end of the 95 % confidence interval over documents; None where one document is no sample."""
    high: float | None


@dataclass(frozen=True)
class Scores:
    """Metrics over ``tokens`` targets of ``documents`` documents: sums divided once."""

    loss: Estimate
    """Nats per token."""
    perplexity: Estimate
    bits_per_byte: Estimate | None
    """None where the tokenizer does not map its tokens to bytes; comparable between tokenizers."""
    top1: Estimate
    """Share of targets that were the most probable token, 0 to 1."""
    top5: Estimate
    """Share of targets that were among the five most probable tokens."""
    tokens: int
    text_bytes: int | None
    """Bytes of text that the targets stand for."""
    documents: int


@dataclass(frozen=True)
class EvaluationRecord(Record):
    """A saved model on a text."""

    kind: ClassVar[str] = "evaluation"
    model: str
    """The folder."""
    preset: str | None
    step: int | None
    """Optimizer steps it has made; None where its folder does not say."""
    tokenizer: str
    data: str
    """What was read."""
    is_held_out: bool
    """Whether it is the held-out split of a run; else all of a text."""
    seq_len: int
    """Tokens of a window: what the model sees at most."""
    stride: int | None
    """Targets scored per window of a long document; None: packed as in training."""
    device: str
    batch_size: int
    """Windows scored at once."""
    scores: Scores
    sources: dict[str, Scores]
    """Of each source by itself, where there are several."""
    eval_s: float
    tokens_per_s: float
