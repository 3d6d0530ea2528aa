"""From documents to a store of tokens, once: a thread reads and cleans ahead while `tokenizers` uses every core.

What a kill leaves are finished parts, behind which the next call goes on.
"""

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from colakit.data.ahead import ahead
from colakit.data.document import Document, cut_between_words
from colakit.data.meter import Meter
from colakit.data.sources import END, START, Position, Source, Tally
from colakit.data.store import Facts, PartState, StoreWriter
from colakit.data.tokenizer import Tokenizer
from colakit.errors import DataError

_BATCH_CHARS = 2_000_000
"""Enough to keep every core busy, little enough to hold: an encoding takes some hundred bytes for each token."""
_PART_CHARS = 1_000_000
_PART_BYTES = 2**25
_BATCHES_AHEAD = 2
_ENCODERS = 2


class Progress(NamedTuple):
    """How far a source has come."""

    source: str
    doing: str
    documents: int
    bytes_read: int
    bytes_total: int | None
    """Of the files on disk; None where that is not known."""


Watch = Callable[[Progress], None]


def unwatched(_progress: Progress) -> None:
    """The `Watch` that looks away."""


@dataclass
class _Batch:
    """Some documents, and the state behind them."""

    documents: list[Document]
    facts: Facts
    state: PartState
    bytes_read: int
    """Of the files on disk, as its reader counts them: another thread may be further by now."""


def tokenise(
    source: Source, tokenizer: Tokenizer, writer: StoreWriter, *, max_document_mb: float, watch: Watch = unwatched
) -> None:
    """Write the rest of `source` behind the parts that `writer` found, and declare the store complete.

    Raises DataError for a fault in the source, or where it changes meanwhile; OSError where nothing can be written.
    """
    state = writer.state or PartState(START, 0, 0, (), 0)
    meter = source.meter()
    held: list[Facts] = []
    tokens: list[NDArray[np.uint32]] = []
    n_documents = n_bytes = 0
    with (
        closing(ahead(_batches(source, state, meter), _BATCHES_AHEAD)) as batches,
        # What Python does with the ids of one batch, it does while the next is being encoded.
        closing(ahead(_encode_batches(batches, tokenizer, max_document_mb), 1)) as encoded,
    ):
        try:
            for batch, ids in encoded:
                tokens += ids.take(tokenizer.eot_id)
                held.append(batch.facts)
                state = batch.state
                n_documents += len(batch.documents)
                watch(Progress(source.name, "tokenising", n_documents, batch.bytes_read, meter.total))
                n_bytes += int(batch.facts.n_bytes.sum())
                if n_bytes >= _PART_BYTES:
                    _write(source, writer, tokens, held, state)
                    held, tokens, n_bytes = [], [], 0
        except DataError:  # of a record, before which everything is as good as it was
            _write(source, writer, tokens, held, state)
            raise
    _write(source, writer, tokens, held, state)
    writer.finish(state)


def _write(
    source: Source, writer: StoreWriter, tokens: list[NDArray[np.uint32]], facts: list[Facts], state: PartState
) -> None:
    """Write a part, where there are documents for one."""
    source.check_unchanged()
    if tokens:
        writer.write(tokens, Facts(*(np.concatenate(column) for column in zip(*facts, strict=True))), state)


def read_facts(source: Source, tally: Tally, watch: Watch = unwatched) -> Facts:
    """What the split needs to know of every document, from a pass that keeps no text."""
    meter = source.meter()
    found = []
    n_documents = 0
    for batch in _batches(source, PartState(START, 0, 0, (), 0), meter, tally):
        found.append(batch.facts)
        n_documents += len(batch.documents)
        watch(Progress(source.name, "reading", n_documents, batch.bytes_read, meter.total))
    return Facts(*(np.concatenate(column) for column in zip(_no_facts(), *found, strict=True)))


def _batches(source: Source, start: PartState, meter: Meter, tally: Tally | None = None) -> Iterator[_Batch]:
    tally = tally if tally is not None else Tally(start.short, start.n_bad, list(start.bad), start.n_bytes)
    held: list[Document] = []
    n_chars = 0
    state = start
    documents = source.documents(tally, start.position, meter)
    while True:
        try:
            position, document = next(documents)
        except StopIteration:
            break
        except DataError:
            if held:  # what comes before the fault is worth keeping; what was left out behind it is met again
                yield _batch(held, state, meter)
            raise
        state = _state(position, tally)
        held.append(document)
        n_chars += len(document.text)
        if n_chars >= _BATCH_CHARS:
            yield _batch(held, state, meter)
            held, n_chars = [], 0
    # Also where no document is left, records that were left out behind the last one count.
    yield _batch(held, _state(END, tally), meter)


def _state(position: Position, tally: Tally) -> PartState:
    return PartState(position, tally.short, tally.n_bad, tuple(tally.bad), tally.n_bytes)


def _batch(documents: list[Document], state: PartState, meter: Meter) -> _Batch:
    hashes = np.array([document.hashes() for document in documents], dtype=np.uint64).reshape(-1, 2)
    n_bytes = np.array([len(document.text.encode()) for document in documents], dtype=np.int64)
    return _Batch(documents, Facts(hashes[:, 0], hashes[:, 1], n_bytes), state, meter.done)


def _no_facts() -> Facts:
    return Facts(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64))


@dataclass
class _Encoded:
    """What the parts of some texts were encoded to."""

    n_texts: int
    ids: list[tuple[int, NDArray[np.uint32]]]
    """Of parts in their order, each with the number of its text: those that are arrays already."""
    last: list[tuple[int, Encoding]]
    """The parts behind them."""

    def take(self, eot_id: int) -> list[NDArray[np.uint32]]:
        """The ids of each text, `eot_id` behind them where there are any. They are not kept here."""
        of_text: list[list[NDArray[np.uint32]]] = [[] for _ in range(self.n_texts)]
        for number, ids in (*self.ids, *((number, _array(encoding)) for number, encoding in self.last)):
            of_text[number].append(ids)
        self.ids, self.last = [], []
        eot = np.array([eot_id], dtype=np.uint32)
        return [np.concatenate([*parts, eot] if any(map(len, parts)) else [eot[:0]]) for parts in of_text]


def _encode(tokenizer: Tokenizer, texts: Sequence[str], max_document_mb: float) -> _Encoded:
    """Nothing at all for a text the tokenizer makes nothing of; in parts where it has more than `max_document_mb`."""
    longest = max(1, int(max_document_mb * 1e6))
    # Parts are smaller than that, so that a giant document keeps every core busy, and little memory.
    parts = ((number, part) for number, text in enumerate(texts) for part in _parts(text, longest))
    encoded = _Encoded(len(texts), [], [])
    for group in _groups(parts):
        # An encoding is many times its ids: of a giant document, only those of one group are held.
        encoded.ids += [(number, _array(encoding)) for number, encoding in encoded.last]
        encodings = tokenizer.encodings([part for _, part in group])
        encoded.last = [(number, encoding) for (number, _), encoding in zip(group, encodings, strict=True)]
    return encoded


def _encode_batches(
    batches: Iterable[_Batch], tokenizer: Tokenizer, max_document_mb: float
) -> Iterator[tuple[_Batch, _Encoded]]:
    """Each batch with what it is encoded to: two at once, so that no core waits for the end of a batch.

    A fault in the source is raised behind the batches before it.
    """
    fault = None
    pending: deque[tuple[_Batch, Future[_Encoded]]] = deque()
    with ThreadPoolExecutor(_ENCODERS) as pool:
        try:
            for batch in batches:
                texts = [document.text for document in batch.documents]
                pending.append((batch, pool.submit(_encode, tokenizer, texts, max_document_mb)))
                if len(pending) == _ENCODERS:
                    done, encoded = pending.popleft()
                    yield done, encoded.result()
        except DataError as error:
            fault = error
        for done, encoded in pending:
            yield done, encoded.result()
    if fault is not None:
        raise fault


def _array(encoding: Encoding) -> NDArray[np.uint32]:
    return np.frombuffer(array("I", encoding.ids), dtype=np.uint32)  # twice as fast as np.array(…)


def _parts(text: str, longest: int) -> Iterable[str]:
    """`text`, or where it has more than `longest` bytes of UTF-8, parts that have hardly more."""
    n_bytes = len(text.encode()) if 4 * len(text) > longest else 0  # a character has at most four
    if n_bytes <= longest:
        return (text,)
    return cut_between_words(text, max(1, min(longest * len(text) // n_bytes, _PART_CHARS)))


def _groups(parts: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """`parts` in order, in groups that can be encoded at once."""
    held: list[tuple[int, str]] = []
    n_chars = 0
    for part in parts:
        if held and n_chars + len(part[1]) > _BATCH_CHARS + _BATCH_CHARS // 2:
            yield held
            held, n_chars = [], 0
        held.append(part)
        n_chars += len(part[1])
    if held:
        yield held
