"""Tokens as bytes of text, which are the same whatever the tokenizer."""

import gzip
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from colakit.data.loader import Batch
from colakit.loss import IGNORE


def byte_lengths(token_bytes: Sequence[bytes] | None) -> Tensor | None:
    """How many bytes of text each token stands for, [V] int64; None where that is not known."""
    return None if token_bytes is None else torch.tensor([len(b) for b in token_bytes])


def count_bytes(targets: Tensor, lengths: Tensor) -> int:
    """The bytes of text that the real targets [B, T], on the host, stand for."""
    return int(lengths[targets[targets != IGNORE]].sum())


def gzip_bits_per_byte(batches: Iterable[Batch], token_bytes: Sequence[bytes] | None) -> float | None:
    """What ``gzip -9`` reaches on exactly the text of the batches' targets; None where bytes are not known."""
    if token_bytes is None:
        return None
    ids = (batch.targets[batch.targets != IGNORE].tolist() for batch in batches)
    text = b"".join(token_bytes[i] for batch_ids in ids for i in batch_ids)
    return 8 * len(gzip.compress(text, compresslevel=9, mtime=0)) / len(text) if text else None
