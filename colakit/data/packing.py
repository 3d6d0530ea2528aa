"""Blocks of T + 1 tokens, made of stored documents as they are asked for: nothing is stored twice.

T is the sequence length; a block's first T tokens are a model's input and its last T the targets. `Packed` cuts the
stream of all documents: block i holds its tokens i·T … i·T + T, so that neighbours share one and each token but the
stream's first is a target once. `Padded` gives each document a block of its own.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from colakit.data.store import DocumentStore

PACKING_VERSION = 2
"""Part of the fingerprint: raise it when the same documents would give other blocks."""

PAD = -1
"""Fills a block behind the end of its text; no token has this id."""


class Blocks(Protocol):
    """What the loader reads."""

    @property
    def n_targets(self) -> int:
        """Real targets of all blocks."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[np.int32]:
        """Block `index`, [T + 1]. Raises IndexError."""


class TextBlocks(Blocks, Protocol):
    """Blocks that know what they are made of."""

    @property
    def n_documents(self) -> int:
        """Documents of the store, whether they are in a block or not."""

    def documents(self, index: int, /) -> NDArray[np.int64]:
        """Which document of the store each target of block `index` is of, [T]; −1 for none."""


class Packed:
    """Documents as one stream, an end-of-text token behind each, cut into blocks; the last one may hold PAD."""

    def __init__(self, store: DocumentStore, chosen: NDArray[np.bool_], seq_len: int) -> None:
        """Of the documents of `store` those that are `chosen`, [N]."""
        self._store = store
        self.seq_len = seq_len
        self._documents = np.flatnonzero(chosen)
        self._ends = np.cumsum(store.lengths[self._documents])
        # Runs of chosen documents lie side by side: where each run begins in the store, and in the stream.
        edges = np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8))
        self._begins, ends = store.starts[np.flatnonzero(edges == 1)], store.starts[np.flatnonzero(edges == -1)]
        self._bounds = np.concatenate([[0], np.cumsum(ends - self._begins)])

    @property
    def n_tokens(self) -> int:
        """Tokens of the stream, end-of-text tokens included."""
        return int(self._bounds[-1])

    @property
    def n_targets(self) -> int:
        """Every token but the first."""
        return max(0, self.n_tokens - 1)

    @property
    def n_documents(self) -> int:
        """Of the store."""
        return len(self._store)

    def __len__(self) -> int:
        return -(-self.n_targets // self.seq_len)

    def documents(self, index: int) -> NDArray[np.int64]:
        """As `TextBlocks.documents`."""
        first = index * self.seq_len + 1
        places = np.arange(first, min(first + self.seq_len, self.n_tokens))
        found = np.full(self.seq_len, -1, dtype=np.int64)
        found[: len(places)] = self._documents[np.searchsorted(self._ends, places, side="right")]
        return found

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = index * self.seq_len
        return _padded(self._read(first, min(first + self.seq_len + 1, self.n_tokens)), self.seq_len)

    def _read(self, start: int, stop: int) -> NDArray[np.int32]:
        run = int(np.searchsorted(self._bounds, start, side="right")) - 1
        found = []
        while start < stop:
            base, end = int(self._bounds[run]), min(stop, int(self._bounds[run + 1]))
            begin = int(self._begins[run])
            found.append(self._store.read(begin + start - base, begin + end - base))
            start, run = end, run + 1
        return np.concatenate(found)


class Padded:
    """A document per block: an end-of-text token, as training on packed text reads before it, then the document.

    A long one is cut to the first T targets; a short one ends with its end-of-text token, and PAD behind it.
    """

    def __init__(self, store: DocumentStore, chosen: NDArray[np.bool_], seq_len: int, eot_id: int) -> None:
        """Of the documents of `store` those that are `chosen`, [N]."""
        self._store = store
        self._documents = np.flatnonzero(chosen & (store.lengths > 0))
        self.seq_len = seq_len
        self._eot_id = eot_id

    @property
    def n_targets(self) -> int:
        """Tokens of the documents, as far as they are not cut."""
        return int(np.minimum(self._store.lengths[self._documents], self.seq_len).sum())

    @property
    def n_documents(self) -> int:
        """Of the store."""
        return len(self._store)

    def __len__(self) -> int:
        return len(self._documents)

    def documents(self, index: int) -> NDArray[np.int64]:
        """As `TextBlocks.documents`."""
        document = int(self._documents[index])
        return np.where(np.arange(self.seq_len) < self._store.lengths[document], document, -1)

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        document = self._documents[index]
        start = int(self._store.starts[document])
        tokens = self._store.read(start, start + min(int(self._store.lengths[document]), self.seq_len))
        return _padded(np.concatenate([[self._eot_id], tokens]), self.seq_len)


class Joined:
    """The blocks of several sources, one source behind the other."""

    def __init__(self, parts: Sequence[TextBlocks]) -> None:
        self._parts = parts
        self._bounds = np.concatenate([[0], np.cumsum([len(part) for part in parts])])

    @property
    def n_targets(self) -> int:
        """Of all parts."""
        return sum(part.n_targets for part in self._parts)

    def __len__(self) -> int:
        return int(self._bounds[-1])

    @property
    def n_documents(self) -> int:
        """Of all parts."""
        return sum(part.n_documents for part in self._parts)

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        part, own = self._find(index)
        return self._parts[part][own]

    def documents(self, index: int) -> NDArray[np.int64]:
        """As `TextBlocks.documents`, those of a part counted on from the parts before it."""
        part, own = self._find(index)
        found = self._parts[part].documents(own)
        return np.where(found >= 0, found + sum(each.n_documents for each in self._parts[:part]), -1)

    def _find(self, index: int) -> tuple[int, int]:
        """The part of block `index`, and the block's index there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._bounds, index, side="right")) - 1
        return part, index - int(self._bounds[part])


def _padded(tokens: NDArray[np.int32], seq_len: int) -> NDArray[np.int32]:
    block = np.full(seq_len + 1, PAD, dtype=np.int32)
    block[: len(tokens)] = tokens
    return block


def padding_frac(blocks: Blocks, seq_len: int) -> float:
    """Share of targets that are padding."""
    return 1.0 - blocks.n_targets / (len(blocks) * seq_len) if len(blocks) else 0.0
