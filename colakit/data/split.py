"""Which documents are held out, decided by content: the same document falls on the same side in every run and order.

The hash of a document's group, read as a number in [0, 1), is compared with ``val_fraction``. Sizes matter in two cases
only: a group of more than half the text is never held out, and where no hash is small enough, one group of at most
average size is, so that a small corpus has something to evaluate on and n groups hold out at most 1/n of the text.
"""

import hashlib
import logging
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from colakit.data.document import Document
from colakit.errors import DataError
from colakit.units import human_count

log = logging.getLogger(__name__)

_LOPSIDED_SHARE = 0.2
_LOPSIDED_FACTOR = 5.0
_ADVICE = "give a .txt longer than 32 KiB, or several documents"


class Side(StrEnum):
    """What a document is used for."""

    TRAIN = "train"
    HELD_OUT = "held_out"
    DUPLICATE = "duplicate"
    """Dropped: training would see a text that is held out."""


@dataclass(frozen=True)
class Split:
    """The decision for every document of one corpus, and what a first pass over it counted."""

    held_out_groups: frozenset[int]
    held_out_texts: frozenset[bytes]
    documents: int
    """Training documents, duplicates of held-out texts not counted."""
    held_out_documents: int
    dropped_documents: int
    text_bytes: int
    """UTF-8 bytes of both sides."""
    content: bytes
    """Hash of all texts and ids in their order."""
    fingerprint: str
    """Of the content and the sides."""

    def side(self, document: Document) -> Side:
        """Where `document` belongs."""
        return _side(group_hash(document), _text_digest(document), self.held_out_groups, self.held_out_texts)

    def checked(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Pass `documents` on; raise DataError behind the last one where they are not those the split was made from.

        A source that changes between two passes would put held-out text into training, under a fingerprint that says
        otherwise.
        """
        content = _content_hash()
        for document in documents:
            _add(content, document)
            yield document
        if content.digest() != self.content:
            raise DataError("the data changed while it was being read. Wait until it is complete, then start again.")


def group_hash(document: Document) -> int:
    """64 uniform bits that depend on the document's group alone."""
    return int.from_bytes(hashlib.blake2b(document.group.encode(), digest_size=8).digest(), "big")


class _Facts(NamedTuple):
    """What a first pass keeps of a document."""

    group: int
    text: bytes
    n_bytes: int


def split_documents(documents: Iterable[Document], val_fraction: float, *, source: str = "the data") -> Split:
    """The split of `documents`, from one pass that keeps two hashes of each and no text.

    Logs a warning where far more is held out than asked for. Raises DataError, naming `source`, where one of the sides
    would be empty.
    """
    content = _content_hash()
    facts = [_Facts(group_hash(document), _text_digest(document), _add(content, document)) for document in documents]
    held_out_groups = _held_out_groups(facts, val_fraction)
    held_out_texts = frozenset(fact.text for fact in facts if fact.group in held_out_groups)
    sides = [_side(fact.group, fact.text, held_out_groups, held_out_texts) for fact in facts]
    n_documents = Counter(sides)
    n_bytes: Counter[Side] = Counter()
    for side, fact in zip(sides, facts, strict=True):
        n_bytes[side] += fact.n_bytes
    content_digest = content.digest()
    for group in sorted(held_out_groups):
        content.update(struct.pack("<Q", group))
    split = Split(
        held_out_groups=held_out_groups,
        held_out_texts=held_out_texts,
        documents=n_documents[Side.TRAIN],
        held_out_documents=n_documents[Side.HELD_OUT],
        dropped_documents=n_documents[Side.DUPLICATE],
        text_bytes=n_bytes[Side.TRAIN] + n_bytes[Side.HELD_OUT],
        content=content_digest,
        fingerprint=content.hexdigest(),
    )
    _check_sides(split, n_groups=len({fact.group for fact in facts}), val_fraction=val_fraction, source=source)
    _warn_if_lopsided(n_bytes[Side.HELD_OUT], split.text_bytes, val_fraction)
    return split


def _content_hash() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _add(content: hashlib.blake2b, document: Document) -> int:
    """Add a document to the hash; return the bytes of its text."""
    text, name = document.text.encode(), (document.id or "").encode()
    content.update(struct.pack("<?QQ", document.id is not None, len(name), len(text)) + name + text)
    return len(text)


def _held_out_groups(facts: Iterable[_Facts], val_fraction: float) -> frozenset[int]:
    sizes: Counter[int] = Counter()
    for fact in facts:
        sizes[fact.group] += fact.n_bytes
    total = sizes.total()
    below = frozenset(g for g, size in sizes.items() if g < val_fraction * 2**64 and 2 * size <= total)
    if below or not sizes:
        return below
    return frozenset({min(g for g, size in sizes.items() if size * len(sizes) <= total)})


def _side(group: int, text: bytes, held_out_groups: frozenset[int], held_out_texts: frozenset[bytes]) -> Side:
    if group in held_out_groups:
        return Side.HELD_OUT
    return Side.DUPLICATE if text in held_out_texts else Side.TRAIN


def _check_sides(split: Split, *, n_groups: int, val_fraction: float, source: str) -> None:
    if n_groups < 2:
        raise DataError(
            f"{source} holds too little text to hold some out: {_ADVICE}. It is one group of "
            f"{split.held_out_documents} document(s), and a group is never divided; ids such as 'book#1' and 'book#2' "
            "are one group, and so are equal texts."
        )
    if split.documents == 0:
        raise DataError(
            f"{source} leaves nothing to train on: {_ADVICE}, or lower data.val_fraction. At {val_fraction} it holds "
            f"out {split.held_out_documents} document(s), and {split.dropped_documents} more repeat their text."
        )


def _warn_if_lopsided(held_out_bytes: int, text_bytes: int, val_fraction: float) -> None:
    if held_out_bytes > max(_LOPSIDED_SHARE, _LOPSIDED_FACTOR * val_fraction) * text_bytes:
        log.warning(
            "%sB of %sB of text are held out, though data.val_fraction is %g: there are few documents, or large groups "
            "of them. Give more, or ids that make smaller groups.",
            human_count(held_out_bytes),
            human_count(text_bytes),
            val_fraction,
        )


def _text_digest(document: Document) -> bytes:
    """Of the words alone: a copy with other line ends is a copy."""
    return hashlib.blake2b(document.words.encode(), digest_size=16).digest()
