"""A text that a model has continued."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from colakit.records.base import Record


@dataclass(frozen=True)
class GenerationRecord(Record):
    """How a model goes on behind ``prompt``."""

    kind: ClassVar[str] = "generation"
    model: str
    step: int | None
    prompt: str
    prompt_tokens: int
    text: str
    """What follows the prompt, without the end-of-text token."""
    tokens: int
    """Generated, the end-of-text token included."""
    ended: Literal["end of text", "length", "not finite"]
    """Why it ends there."""
    temperature: float
    top_k: int | None
    top_p: float
    seed: int
    device: str
    tokens_per_s: float
