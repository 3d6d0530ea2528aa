"""Stores of tokenised documents, written as `prepare` writes them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from colakit.data.store import DocumentStore, Facts, PartState, StoreWriter
from colakit.data.tokenise import _encode
from colakit.data.tokenizer import Tokenizer

EOT = 0
DONE = PartState((0, 0), 0, 0, (), 0)


def make_store(folder: Path, parts: Sequence[Iterable[list[int]]], n_ids: int = 100) -> DocumentStore:
    """A store of these documents in these parts. An end-of-text token is put behind each that has tokens."""
    writer = StoreWriter(folder, n_ids)
    for part in parts:
        tokens = [np.array([*ids, EOT] if ids else [], dtype=np.uint32) for ids in part]
        hashes = np.arange(len(tokens), dtype=np.uint64)
        writer.write(tokens, Facts(hashes, hashes, np.array([len(ids) for ids in tokens], dtype=np.int64)), DONE)
    writer.finish(DONE)
    return DocumentStore(folder)


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str], max_document_mb: float) -> list[NDArray[np.uint32]]:
    """The ids of each text, and its end-of-text token."""
    return _encode(tokenizer, texts, max_document_mb).take(tokenizer.eot_id)
