"""What `colakit data` tells of prepared data, as frozen records."""

from dataclasses import dataclass
from typing import ClassVar

from colakit.records.base import Record


@dataclass(frozen=True)
class LengthBin:
    """Documents of `at_least` … `below` − 1 tokens, the end-of-text token included."""

    at_least: int
    below: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class DataSample:
    """The beginning of a document, decoded from its tokens."""

    side: str
    tokens: int
    text: str


@dataclass(frozen=True)
class SourceRecord:
    """One source. Tokens include the end-of-text tokens; ``text_bytes`` are UTF-8, of both sides."""

    name: str
    label: str
    """What it reads."""
    documents: int
    """For training."""
    held_out_documents: int
    dropped_documents: int
    """Left out of training because their text is held out."""
    short_documents: int
    """Left out because they have fewer than ``data.min_words`` words."""
    bad_records: int
    """Left out because they could not be read."""
    first_bad_records: tuple[str, ...]
    text_bytes: int
    train_tokens: int
    held_out_tokens: int
    bytes_per_token: float
    """Of all tokens, end-of-text tokens included."""
    train_blocks: int
    held_out_blocks: int
    padding_frac: float
    """Share of the training blocks' targets that are padding."""
    cut_frac: float
    """Share of the training tokens that packing leaves out: ends of documents longer than a block, under ``pad``."""
    median_tokens: int
    mean_tokens: float
    longest_tokens: int
    lengths: tuple[LengthBin, ...]
    samples: tuple[DataSample, ...]


@dataclass(frozen=True)
class StageRecord:
    """One stage of a run, from its first block to the one before ``end``; a source's blocks are exact counts."""

    begin: int
    end: int
    blocks: dict[str, int]
    """By source."""
    epochs: dict[str, float]
    """How often each source has been read through at the stage's end, since the run's beginning."""


@dataclass(frozen=True)
class DataRecord(Record):
    """Prepared data, and what a run of this configuration reads of it."""

    kind: ClassVar[str] = "data"
    preset: str
    fingerprint: str
    folder: str
    """The cache folder that holds it."""
    tokenizer: str
    tokenizer_tokens: int
    eot_token: str
    packing: str
    attend_across_documents: bool
    seq_len: int
    sources: tuple[SourceRecord, ...]
    stages: tuple[StageRecord, ...]
