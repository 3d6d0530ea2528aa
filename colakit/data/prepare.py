"""From `DataConfig` to blocks on disk: read, split, tokenise and pack once, and find it in the cache after that.

The source is read on each call, since only its content says whether the cache still fits; tokenising, which costs far
more, is what the cache saves. Documents stream through and are not kept in memory.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from colakit.config.schema import DataConfig
from colakit.data.blocks import Blocks, write_blocks
from colakit.data.bpe import TRAINER_VERSION, train_bpe
from colakit.data.cache import cache_root, cached_folder
from colakit.data.document import Document
from colakit.data.packing import pack
from colakit.data.pretrained import check_tokenizer, load_tokenizer
from colakit.data.sources import Documents, check_source, source_name
from colakit.data.split import Side, Split, split_documents
from colakit.data.tokenizer import Tokenizer, read_tokenizer
from colakit.errors import ConfigError, DataError, Problem
from colakit.units import human_count

log = logging.getLogger(__name__)

PACKING_VERSION = 1
"""Part of the fingerprint: raise it when the same documents would give other blocks."""

_PROMPT_TOKENS = 64
_BATCH_CHARS = 1_000_000


@dataclass(frozen=True)
class PreparedData:
    """Everything a run reads, and what there is of it. Token counts include the end-of-text tokens."""

    tokenizer: Tokenizer
    train: Blocks
    held_out: Blocks
    fingerprint: str
    """Of texts, ids, split, tokenizer and packing: equal fingerprints mean equal blocks."""
    documents: int
    held_out_documents: int
    dropped_documents: int
    """Left out of training because their text is held out."""
    short_documents: int
    """Left out since they have fewer than ``data.min_words`` words."""
    text_bytes: int
    train_tokens: int
    held_out_tokens: int

    @property
    def prompt_text(self) -> str:
        """The beginning of the first held-out document, at most 64 tokens of it."""
        block = self.held_out[0][:_PROMPT_TOKENS].tolist()
        end = block.index(self.tokenizer.eot_id) if self.tokenizer.eot_id in block else len(block)
        return self.tokenizer.decode(block[:end]).rstrip("\ufffd")  # a character cut in two

    def describe(self) -> dict[str, str | int]:
        """What a report or a run folder says about the data, as JSON values."""
        return {
            "fingerprint": self.fingerprint,
            "tokenizer": self.tokenizer.source,
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "tokenizer_tokens": self.tokenizer.n_tokens,
            "documents": self.documents,
            "held_out_documents": self.held_out_documents,
            "dropped_documents": self.dropped_documents,
            "short_documents": self.short_documents,
            "text_bytes": self.text_bytes,
            "train_tokens": self.train_tokens,
            "held_out_tokens": self.held_out_tokens,
        }


def check_sources(config: DataConfig) -> None:
    """Raise the DataError of a source or tokenizer that is not there, before anything is read or downloaded."""
    check_source(config)
    if config.tokenizer != "bpe":
        check_tokenizer(config.tokenizer)


def prepare(config: DataConfig, *, seq_len: int, vocab_size: int) -> PreparedData:
    """The tokenizer and the blocks of both sides, from the cache where they are there.

    Raises DataError for a fault in source, tokenizer, split or cache, and where training text does not fill one block;
    ConfigError where the model has fewer rows than the tokenizer has tokens.
    """
    tokenizer = None if config.tokenizer == "bpe" else load_tokenizer(config.tokenizer)
    if tokenizer is not None:
        _check_vocab(tokenizer, vocab_size)
    documents = Documents(config)
    split = split_documents(documents, config.val_fraction, source=source_name(config))
    short = documents.short
    if tokenizer is None:
        tokenizer = _trained_bpe(config, split, vocab_size)
        _check_vocab(tokenizer, vocab_size)
    fingerprint = _key(split.fingerprint, tokenizer.fingerprint, seq_len, PACKING_VERSION)
    folder = cached_folder(
        cache_root(config) / "blocks" / fingerprint, _blocks_writer(config, split, tokenizer, seq_len)
    )
    train, held_out = (Blocks(_path(folder, side), seq_len) for side in (Side.TRAIN, Side.HELD_OUT))
    _check_length(train, held_out)
    return PreparedData(
        tokenizer=tokenizer,
        train=train,
        held_out=held_out,
        fingerprint=fingerprint,
        documents=split.documents,
        held_out_documents=split.held_out_documents,
        dropped_documents=split.dropped_documents,
        short_documents=short,
        text_bytes=split.text_bytes,
        train_tokens=train.n_tokens,
        held_out_tokens=held_out.n_tokens,
    )


def _trained_bpe(config: DataConfig, split: Split, vocab_size: int) -> Tokenizer:
    """A BPE of the training documents alone: what is held out must not shape its tokens."""

    def write(folder: Path) -> None:
        log.info("Preparing data: training a tokenizer of %d tokens on %s …", vocab_size, _extent(split))
        train_bpe((document.text for document in _side(config, split, Side.TRAIN)), vocab_size).save(folder)

    key = _key(split.fingerprint, vocab_size, TRAINER_VERSION)
    folder = cached_folder(cache_root(config) / "tokenizers" / key, write)
    return read_tokenizer(folder, source="bpe")


def _blocks_writer(config: DataConfig, split: Split, tokenizer: Tokenizer, seq_len: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        log.info("Preparing data: tokenising %s …", _extent(split))
        for side in (Side.TRAIN, Side.HELD_OUT):
            write_blocks(_path(folder, side), _blocks(_side(config, split, side), tokenizer, seq_len), seq_len)

    return write


def _extent(split: Split) -> str:
    return f"{split.documents + split.held_out_documents} documents, {human_count(split.text_bytes)}B of text"


def _blocks(documents: Iterator[Document], tokenizer: Tokenizer, seq_len: int) -> Iterator[NDArray[np.int32]]:
    token_lists = (ids for texts in _batches(documents) for ids in tokenizer.encode_batch(texts))
    return pack((ids for ids in token_lists if ids), tokenizer.eot_id, seq_len)  # a normalizer may leave nothing


def _batches(documents: Iterator[Document]) -> Iterator[Sequence[str]]:
    """Texts in batches of about a million characters: enough to keep every core busy, little enough to hold."""
    held: list[str] = []
    n_chars = 0
    for document in documents:
        held.append(document.text)
        n_chars += len(document.text)
        if n_chars >= _BATCH_CHARS:
            yield held
            held, n_chars = [], 0
    if held:
        yield held


def _side(config: DataConfig, split: Split, side: Side) -> Iterator[Document]:
    return (document for document in split.checked(Documents(config)) if split.side(document) is side)


def _path(folder: Path, side: Side) -> Path:
    return folder / f"{side.value}.arrow"


def _key(*parts: str | int) -> str:
    return hashlib.blake2b("\n".join(str(part) for part in parts).encode(), digest_size=12).hexdigest()


def _check_vocab(tokenizer: Tokenizer, vocab_size: int) -> None:
    if tokenizer.n_tokens > vocab_size:
        needed = tokenizer.n_tokens
        rule = f"the tokenizer {tokenizer.source} needs {needed} rows, one for each id"
        raise ConfigError([Problem("model.vocab_size", vocab_size, rule, f"Use --set model.vocab_size={needed}.")])


def _check_length(train: Blocks, held_out: Blocks) -> None:
    needed = train.seq_len + 1
    if train.n_tokens < needed:
        raise DataError(
            f"the training text has {train.n_tokens} tokens, but one sequence takes {needed} (model.seq_len + 1). "
            "Lower model.seq_len, or give more text."
        )
    if len(held_out) == 0:
        raise DataError("the tokenizer makes no tokens of the held-out text. Use another tokenizer.")
