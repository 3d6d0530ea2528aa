"""From `DataConfig` to blocks: every source is read, tokenised once and found in the cache after that.

What costs is kept: the documents' tokens, under a key of what was read, how it was cleaned, and the tokenizer. Split,
sequence length and packing are arithmetic over them.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from colakit.config.schema import DataConfig
from colakit.data.cache import alone, cache_root, cached_folder, key_of, writing
from colakit.data.document import fail
from colakit.data.own_bpe import own_bpe
from colakit.data.packing import PACKING_VERSION, Blocks, Joined, Packed, Padded, TextBlocks
from colakit.data.pretrained import check_tokenizer, load_tokenizer
from colakit.data.sources import Source, Tally, no_text
from colakit.data.split import Side, Sides, split_sources, warn_of_shares
from colakit.data.store import STORE_VERSION, DocumentStore, StoreWriter, is_complete
from colakit.data.tokenise import Watch, tokenise, unwatched
from colakit.data.tokenizer import Tokenizer
from colakit.errors import ConfigError, DataError, Problem

log = logging.getLogger(__name__)

_PROMPT_TOKENS = 64


@dataclass(frozen=True)
class PreparedSource:
    """One source, tokenised and split."""

    name: str
    label: str
    """What it reads, in the user's words."""
    store: DocumentStore
    sides: Sides
    is_replayable: bool
    """Whether reading it again, here or elsewhere, gives the same documents."""
    train: TextBlocks
    held_out: TextBlocks

    def describe(self) -> dict[str, Any]:  # Any: JSON values
        """Counts. Tokens include the end-of-text tokens."""
        train, held_out, dropped = (self.sides == side for side in Side)
        return {
            "documents": int(train.sum()),
            "held_out_documents": int(held_out.sum()),
            "dropped_documents": int(dropped.sum()),
            "short_documents": self.store.short,
            "bad_records": self.store.n_bad,
            "text_bytes": int(self.store.facts.n_bytes[~dropped].sum()),
            "train_tokens": int(self.store.lengths[train].sum()),
            "held_out_tokens": int(self.store.lengths[held_out].sum()),
            "train_blocks": len(self.train),
            "held_out_blocks": len(self.held_out),
            **({} if self.is_replayable else {"not_replayable": 1}),
        }


@dataclass(frozen=True)
class PreparedData:
    """Everything a run reads, and what there is of it."""

    tokenizer: Tokenizer
    sources: tuple[PreparedSource, ...]
    fingerprint: str
    """Of texts, ids, split, tokenizer and packing: equal fingerprints mean equal blocks."""
    isolate_eot: int | None
    """The end-of-text id where documents shall not see each other."""

    @property
    def train(self) -> dict[str, Blocks]:
        """The training blocks of every source."""
        return {source.name: source.train for source in self.sources}

    @cached_property
    def held_out(self) -> TextBlocks:
        """The held-out blocks of all sources, one source behind the other."""
        parts = [source.held_out for source in self.sources]
        return parts[0] if len(parts) == 1 else Joined(parts)

    @property
    def prompt_text(self) -> str:
        """The beginning of the first held-out document, at most 64 tokens of it."""
        source = self.sources[0]
        document = int(np.flatnonzero((source.sides == Side.HELD_OUT) & (source.store.lengths > 0))[0])
        start, length = int(source.store.starts[document]), int(source.store.lengths[document])
        ids = source.store.read(start, start + min(length - 1, _PROMPT_TOKENS))
        return self.tokenizer.decode(ids.tolist()).rstrip("\ufffd")  # a character cut in two

    def describe(self) -> dict[str, Any]:  # Any: JSON values
        """What a report or a run folder says about the data: sums over the sources, and each source by itself."""
        each = {source.name: source.describe() for source in self.sources}
        return {
            "fingerprint": self.fingerprint,
            "tokenizer": self.tokenizer.source,
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "tokenizer_tokens": self.tokenizer.n_tokens,
            **{key: sum(counts[key] for counts in each.values()) for key in next(iter(each.values()))},
            **({"sources": each} if len(each) > 1 else {}),
        }


def check_sources(config: DataConfig) -> None:
    """Raise the DataError of a source or tokenizer that is not there, before anything is read or downloaded."""
    for source in _open(config):
        source.check()
    if config.tokenizer != "bpe":
        check_tokenizer(config.tokenizer)


def prepare(config: DataConfig, *, seq_len: int, vocab_size: int, watch: Watch = unwatched) -> PreparedData:
    """The tokenizer and the blocks of both sides of every source, from the cache where they are there.

    Raises DataError for a fault in source, tokenizer, split or cache, and where training text does not fill one block;
    ConfigError where the model has fewer rows than the tokenizer has tokens.
    """
    tokenizer = None if config.tokenizer == "bpe" else load_tokenizer(config.tokenizer)
    if tokenizer is not None:
        _check_vocab(tokenizer, vocab_size)
    sources = _open(config)
    for source in sources:
        source.check()
    identities = [source.identity() for source in sources]
    if tokenizer is None:
        tokenizer = own_bpe(config, sources, identities, vocab_size, watch)
        _check_vocab(tokenizer, vocab_size)
    pairs = zip(sources, identities, strict=True)
    stores = [_store(config, source, identity, tokenizer, watch) for source, identity in pairs]
    sides = split_sources([store.facts for store in stores], config.val_fraction, [s.label for s in sources])
    for source, store, side in zip(sources, stores, sides, strict=True):
        warn_of_shares(store.facts, side, config.val_fraction, source.label)
    packing = (config.max_document_mb, config.packing, seq_len, config.val_fraction, PACKING_VERSION)
    names = [source.name for source in sources]
    # What nobody can read again is told apart by what was stored of it.
    unpinned = [store.digest for source, store in zip(sources, stores, strict=True) if not source.is_replayable]
    data = PreparedData(
        tokenizer=tokenizer,
        sources=tuple(
            _prepared(source, store, side, config, tokenizer, seq_len)
            for source, store, side in zip(sources, stores, sides, strict=True)
        ),
        fingerprint=key_of(*names, *identities, *unpinned, tokenizer.fingerprint, *packing),
        isolate_eot=tokenizer.eot_id if config.isolates_documents else None,
    )
    _check_length(data, seq_len)
    return data


def tokenise_whole(
    config: DataConfig, tokenizer: Tokenizer, watch: Watch = unwatched
) -> dict[str, tuple[str, DocumentStore]]:
    """Label and documents of every source of `config`, by its name: all of them, tokenised and not split.

    Raises DataError for a fault in a source, or where the tokenizer makes no tokens of it.
    """
    found = {}
    for source in _open(config):
        source.check()
        store = _store(config, source, source.identity(), tokenizer, watch)
        if not store.lengths.any():
            raise DataError(f"{source.label}: the tokenizer makes no tokens of the text. Give another text.")
        found[source.name] = source.label, store
    return found


def _open(config: DataConfig) -> list[Source]:
    cache = cache_root(config)
    return [Source(name, source, config, cache) for name, source in config.mixture.items()]


def _store(config: DataConfig, source: Source, identity: str, tokenizer: Tokenizer, watch: Watch) -> DocumentStore:
    """The tokenised documents of `source`; finished parts of an interrupted call are kept."""
    key = key_of(identity, tokenizer.fingerprint, config.max_document_mb, STORE_VERSION)
    folder = cache_root(config) / "tokens" / key

    def fill(folder: Path) -> None:
        log.info("Preparing data: tokenising %s …", source.label)
        started = time.perf_counter()
        writer = StoreWriter(folder, tokenizer.n_tokens)
        if writer.state is not None:
            _check_bad(config, writer.state.bad)
        try:
            tokenise(source, tokenizer, writer, max_document_mb=config.max_document_mb, watch=watch)
        except KeyboardInterrupt:
            kept = "the same command goes on" if source.is_replayable and writer.n_parts else "nothing is kept"
            log.warning("Interrupted while tokenising %s: %s.", source.label, kept)
            raise
        log.info("Prepared %s in %.1f s.", source.label, time.perf_counter() - started)

    with writing(folder):
        if not is_complete(folder):
            waiting = f"Another process is preparing {source.label}: waiting for it …"
            with alone(cache_root(config) / "locks" / f"{key}.lock", waiting):
                if not is_complete(folder):
                    fill(folder) if source.is_replayable else _fill_whole(source, folder, fill)
        store = DocumentStore(folder)
    _check_bad(config, store.bad)
    if len(store) == 0:
        raise no_text(source, Tally(store.short, store.n_bad, list(store.bad)), config)
    if store.n_bad:
        log.warning("%s: bad records left out: %d, the first: %s", source.label, store.n_bad, store.bad[0])
    return store


def _fill_whole(source: Source, folder: Path, fill: Callable[[Path], None]) -> None:
    log.warning(
        "%s is not pinned to a commit: what is prepared now stays as it is, but an interrupted preparation begins "
        "anew, and another machine may prepare something else.",
        source.label,
    )
    cached_folder(folder, fill)


def _check_bad(config: DataConfig, bad: Sequence[str]) -> None:
    """Of records that were left out at another time, which is now a fault."""
    if bad and config.on_bad_record == "fail":
        fail(DataError(bad[0]))


def _prepared(
    source: Source, store: DocumentStore, sides: Sides, config: DataConfig, tokenizer: Tokenizer, seq_len: int
) -> PreparedSource:
    def blocks(side: Side) -> TextBlocks:
        if config.packing == "pad":
            return Padded(store, sides == side, seq_len, tokenizer.eot_id)
        return Packed(store, sides == side, seq_len)

    return PreparedSource(
        source.name, source.label, store, sides, source.is_replayable, blocks(Side.TRAIN), blocks(Side.HELD_OUT)
    )


def _check_vocab(tokenizer: Tokenizer, vocab_size: int) -> None:
    if tokenizer.n_tokens > vocab_size:
        needed = tokenizer.n_tokens
        rule = f"the tokenizer {tokenizer.source} needs {needed} rows, one for each id"
        raise ConfigError([Problem("model.vocab_size", vocab_size, rule, f"Use --set model.vocab_size={needed}.")])


def _check_length(data: PreparedData, seq_len: int) -> None:
    for source in data.sources:
        if source.held_out.n_targets == 0:
            raise DataError(
                f"{source.label}: the tokenizer makes no tokens of the held-out text. Use another tokenizer."
            )
        if len(source.train) == 0 and not isinstance(source.train, Packed):
            raise DataError(
                f"{source.label}: the tokenizer makes no tokens of the training text. Use another tokenizer."
            )
        n_tokens = int(source.store.lengths[source.sides == Side.TRAIN].sum())
        if isinstance(source.train, Packed) and n_tokens < seq_len + 1:
            raise DataError(
                f"{source.label}: the training text has {n_tokens} tokens, but one sequence takes {seq_len + 1} "
                "(model.seq_len + 1). Lower model.seq_len or data.val_fraction, or give more text."
            )
