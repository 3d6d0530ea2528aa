"""Which documents are held out, decided by content: the same document falls on the same side in every run and order.

The hash of a document's group, read as a number in [0, 1), is compared with ``val_fraction``. The group with the
smallest hash is always held out, so that a small corpus has something to evaluate on.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from colakit.data.document import Document
from colakit.errors import DataError


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
        if group_hash(document) in self.held_out_groups:
            return Side.HELD_OUT
        return Side.DUPLICATE if _text_digest(document) in self.held_out_texts else Side.TRAIN

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


def split_documents(documents: Iterable[Document], val_fraction: float) -> Split:
    """The split of `documents`, from one pass that keeps two hashes of each and no text.

    Raises DataError where one of the sides would be empty.
    """
    groups: list[int] = []
    texts: list[bytes] = []
    sizes: list[int] = []
    content = _content_hash()
    for document in documents:
        sizes.append(_add(content, document))
        groups.append(group_hash(document))
        texts.append(_text_digest(document))
    held_out_groups = _held_out_groups(groups, val_fraction)
    is_held_out = [group in held_out_groups for group in groups]
    held_out_texts = frozenset(text for text, held in zip(texts, is_held_out, strict=True) if held)
    is_dropped = [not held and text in held_out_texts for text, held in zip(texts, is_held_out, strict=True)]
    content_digest = content.digest()
    for group in sorted(held_out_groups):
        content.update(struct.pack("<Q", group))
    split = Split(
        held_out_groups=held_out_groups,
        held_out_texts=held_out_texts,
        documents=len(groups) - sum(is_held_out) - sum(is_dropped),
        held_out_documents=sum(is_held_out),
        dropped_documents=sum(is_dropped),
        text_bytes=sum(size for size, dropped in zip(sizes, is_dropped, strict=True) if not dropped),
        content=content_digest,
        fingerprint=content.hexdigest(),
    )
    _check_sides(split, n_groups=len(set(groups)), val_fraction=val_fraction)
    return split


def _content_hash() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _add(content: hashlib.blake2b, document: Document) -> int:
    """Add a document to the hash; return the bytes of its text."""
    text, name = document.text.encode(), (document.id or "").encode()
    content.update(struct.pack("<?QQ", document.id is not None, len(name), len(text)) + name + text)
    return len(text)


def _held_out_groups(groups: list[int], val_fraction: float) -> frozenset[int]:
    if not groups:
        return frozenset()
    return frozenset(group for group in groups if group < val_fraction * 2**64) | {min(groups)}


def _check_sides(split: Split, *, n_groups: int, val_fraction: float) -> None:
    advice = "Give more documents (or a .txt longer than 32 KiB, which is cut into several)"
    if n_groups < 2:
        raise DataError(
            f"{split.held_out_documents} document(s) of one group: the training split or the held-out split would be "
            f"empty, since a group is never divided. {advice}; ids such as 'book#1' and 'book#2' are one group."
        )
    if split.documents == 0:
        raise DataError(
            f"the training split would be empty: data.val_fraction = {val_fraction} holds out "
            f"{split.held_out_documents} document(s), and {split.dropped_documents} more repeat their text. "
            f"{advice}, or lower data.val_fraction."
        )


def _text_digest(document: Document) -> bytes:
    return hashlib.blake2b(document.text.encode(), digest_size=16).digest()
