"""What there is of prepared data, and how a run goes through it: nothing is trained."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from colakit.build import build_schedule
from colakit.config.schema import RunConfig
from colakit.data.cache import cache_root
from colakit.data.packing import Padded, padding_frac
from colakit.data.prepare import PreparedData, PreparedSource
from colakit.data.split import Side
from colakit.records.data import DataRecord, DataSample, LengthBin, SourceRecord, StageRecord

_SAMPLES_PER_SIDE = {Side.TRAIN: 2, Side.HELD_OUT: 1}
_SAMPLE_TOKENS = 48


def inspect_data(config: RunConfig, data: PreparedData) -> DataRecord:
    """Counts, lengths, proportions and samples of `data`, as prepared for `config`."""
    return DataRecord(
        preset=config.preset,
        fingerprint=data.fingerprint,
        folder=str(cache_root(config.data)),
        tokenizer=data.tokenizer.source,
        tokenizer_tokens=data.tokenizer.n_tokens,
        eot_token=data.tokenizer.eot_token,
        packing=config.data.packing,
        attend_across_documents=data.isolate_eot is None and config.data.packing == "pack",
        seq_len=config.model.seq_len,
        sources=tuple(_source(source, data, config.model.seq_len) for source in data.sources),
        stages=_stages(config, data),
    )


def _source(source: PreparedSource, data: PreparedData, seq_len: int) -> SourceRecord:
    counts = source.describe()
    lengths = source.store.lengths[source.sides != Side.DUPLICATE]
    n_tokens = int(lengths.sum())
    train_tokens = counts["train_tokens"]
    kept = source.train.n_targets if isinstance(source.train, Padded) else train_tokens
    return SourceRecord(
        name=source.name,
        label=source.label,
        **{key: counts[key] for key in _COUNTS},
        first_bad_records=source.store.bad,
        bytes_per_token=counts["text_bytes"] / max(1, n_tokens),
        padding_frac=padding_frac(source.train, seq_len),
        cut_frac=1.0 - kept / train_tokens,
        median_tokens=int(np.median(lengths)),
        mean_tokens=n_tokens / len(lengths),
        longest_tokens=int(lengths.max()),
        lengths=_histogram(lengths),
        samples=_samples(source, data),
    )


_COUNTS = (
    "documents",
    "held_out_documents",
    "dropped_documents",
    "short_documents",
    "bad_records",
    "text_bytes",
    "train_tokens",
    "held_out_tokens",
    "train_blocks",
    "held_out_blocks",
)


def _histogram(lengths: NDArray[np.int64]) -> tuple[LengthBin, ...]:
    """Bins that double in width, from the shortest document to the longest."""
    exponents = np.floor(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    bins = []
    for exponent in range(int(exponents.min()), int(exponents.max()) + 1):
        of_bin = lengths[exponents == exponent]
        bins.append(LengthBin(2**exponent, 2 ** (exponent + 1), len(of_bin), int(of_bin.sum())))
    return tuple(bins)


def _samples(source: PreparedSource, data: PreparedData) -> tuple[DataSample, ...]:
    """Documents spread over each side, the same at every call."""
    found = []
    for side, n_samples in _SAMPLES_PER_SIDE.items():
        documents = np.flatnonzero((source.sides == side) & (source.store.lengths > 0))
        places = np.linspace(0, len(documents) - 1, n_samples + 2)[1:-1].astype(np.int64)
        for document in documents[np.unique(places)].tolist():
            start, length = int(source.store.starts[document]), int(source.store.lengths[document])
            ids = source.store.read(start, start + min(length, _SAMPLE_TOKENS))
            found.append(DataSample(side.name.lower(), length, data.tokenizer.decode(ids.tolist())))
    return tuple(found)


def _stages(config: RunConfig, data: PreparedData) -> tuple[StageRecord, ...]:
    schedule = build_schedule(config)
    n_blocks = {source.name: len(source.train) for source in data.sources}
    bounds = [0, *(min(end, config.n_blocks) for end in config.stage_ends), config.n_blocks]
    stages = []
    for begin, end in pairwise(bounds):
        after = dict(zip(schedule.names, schedule.counts(end).tolist(), strict=True))
        before = dict(zip(schedule.names, schedule.counts(begin).tolist(), strict=True))
        blocks = {name: after[name] - before[name] for name in schedule.names}
        epochs = {name: after[name] / n_blocks[name] for name in schedule.names}
        stages.append(StageRecord(begin, end, blocks, epochs))
    return tuple(stages)
