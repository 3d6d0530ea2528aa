"""The text of an evaluation as windows that a model reads: packed as in training, or long documents step by step.

Shapes: T targets of a window, N documents of a store.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from colakit.data.loader import Batch, choose, permutation
from colakit.data.packing import PAD, TextBlocks
from colakit.data.store import DocumentStore
from colakit.loss import IGNORE
from colakit.parallel.world import World

_CAPPED_SEED = 0
_BYTES_PER_TOKEN = 4
"""About: a limit on tokens is one on bytes where every tokenizer is to read the same documents."""


@dataclass(frozen=True)
class TextSource:
    """Some documents of a store."""

    name: str
    label: str
    store: DocumentStore
    chosen: NDArray[np.bool_]
    """[N] which of them."""


class Window(NamedTuple):
    """Ids [T + 1]: all but the last are read, all but the first are targets."""

    ids: NDArray[np.int32]
    documents: NDArray[np.int64]
    """[T] which document each target is of, counted over all sources; −1: not scored here."""


class Windows(Sequence[Window]):
    """Base: windows that are read when they are asked for."""

    n_documents: int
    """Documents of all sources, scored or not."""


class BlockWindows(Windows):
    """Blocks as training packs them; of more than `max_tokens` targets, those that training evaluates on."""

    def __init__(self, blocks: TextBlocks, max_tokens: int | None) -> None:
        self._blocks = blocks
        self._chosen = choose(blocks, blocks.n_targets if max_tokens is None else max_tokens)
        self.n_documents = blocks.n_documents

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]  # no slices
        block = self._chosen[index]
        return Window(self._blocks[block], self._blocks.documents(block))


class SlidingWindows(Windows):
    """Each document by itself, behind an end-of-text token: a window of `seq_len` tokens moves on by `stride`.

    Every token of a document is a target once, the first window's all of them, then each window's last `stride`, so
    that a target behind the first window sees `seq_len` − `stride` tokens of its document at least. Of documents with
    more bytes together than about `max_tokens` tokens have, a fixed random choice, whatever the tokenizer. Long windows
    come first, and like ones together.
    """

    def __init__(
        self, sources: Sequence[TextSource], *, seq_len: int, stride: int, eot_id: int, max_tokens: int | None
    ) -> None:
        self._sources = sources
        self._eot_id = eot_id
        self._offsets = np.cumsum([0, *(len(source.store) for source in sources)])
        self.n_documents = int(self._offsets[-1])
        places: list[tuple[int, int, int, int, int]] = []  # source, document, first id, end, first target scored
        for number, document in self._documents(max_tokens):
            length = int(sources[number].store.lengths[document])
            end = min(seq_len, length)
            places.append((number, document, 0, end, 0))
            while end < length:
                scored, end = end, min(end + stride, length)
                places.append((number, document, end - seq_len, end, scored))
        self._places = sorted(places, key=lambda place: place[2] - place[3])

    def _documents(self, max_tokens: int | None) -> Iterator[tuple[int, int]]:
        """Source and number of each document that is taken, in order."""
        found = [
            (number, int(document))
            for number, source in enumerate(self._sources)
            for document in np.flatnonzero(source.chosen & (source.store.lengths > 0))
        ]
        sizes = np.array([self._sources[number].store.facts.n_bytes[document] for number, document in found])
        if max_tokens is None or sizes.sum() <= (most := _BYTES_PER_TOKEN * max_tokens):
            return iter(found)
        order = permutation(len(found), _CAPPED_SEED)
        n_taken = max(1, int(np.searchsorted(sizes[order].cumsum(), most, side="right")))
        return iter([found[i] for i in sorted(order[:n_taken].tolist())])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]  # no slices
        number, document, start, end, scored = self._places[index]
        store = self._sources[number].store
        begin = int(store.starts[document])
        # Ids are the end-of-text token and the document; target i is the document's token i.
        tokens = store.read(begin + max(0, start - 1), begin + end)
        ids = tokens if start else np.concatenate([np.array([self._eot_id], np.int32), tokens])
        documents = np.full(end - start, int(self._offsets[number]) + document, dtype=np.int64)
        documents[: scored - start] = -1
        return Window(ids, documents)


class Share(Windows):
    """What falls to this process of `windows`, every size-th: as many for all, the last one maybe scored by nobody."""

    def __init__(self, windows: Windows, world: World) -> None:
        self._windows, self._world = windows, world
        self.n_documents = windows.n_documents

    def __len__(self) -> int:
        return -(-len(self._windows) // self._world.size)

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]  # no slices
        place = index * self._world.size + self._world.rank
        if place < len(self._windows):
            return self._windows[place]
        ids, documents = self._windows[0]
        return Window(ids, np.full_like(documents, -1))


class ScoredBatch(NamedTuple):
    """Windows side by side, padded to the longest of them."""

    batch: Batch
    """Targets that are not scored are IGNORE."""
    documents: NDArray[np.int64]
    """[B, T] as in `Window`."""


def batch_of(windows: Sequence[Window], isolate_eot: int | None) -> ScoredBatch:
    """A batch of `windows`; with `isolate_eot`, documents begin at that token and see no other."""
    t = max(len(window.documents) for window in windows)
    ids = np.full((len(windows), t + 1), PAD, dtype=np.int64)
    documents = np.full((len(windows), t), -1, dtype=np.int64)
    for row, window in enumerate(windows):
        ids[row, : len(window.ids)] = window.ids
        documents[row, : len(window.documents)] = window.documents
    tokens, targets = torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:].copy())
    targets[torch.from_numpy(documents < 0)] = IGNORE
    batch = Batch(
        tokens=tokens.masked_fill(tokens == PAD, 0),
        targets=targets.masked_fill(targets == PAD, IGNORE),
        document_starts=None if isolate_eot is None else tokens == isolate_eot,
    )
    return ScoredBatch(batch, documents)
