"""What a source yields, and what it does with a record it cannot read."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from colakit.errors import DataError

OnBad: TypeAlias = Callable[[DataError], None]
"""Is told of a record that cannot be read. Where it returns, the record is left out and reading goes on."""


def fail(error: DataError) -> NoReturn:
    """The `OnBad` that ends the run."""
    raise error


@dataclass(frozen=True, slots=True)
class Document:
    """One text, with the name its source gives it. Documents of one group are never split over two sides."""

    text: str
    id: str | None = None

    def hashes(self) -> tuple[int, int]:
        """Of group and text, each uniform in 0 … 2⁶⁴ − 1.

        The text's is that of its words alone: equal for copies that differ in line ends or layout. The group is the
        part of `id` before ``#`` where there is one (`book#3` belongs to `book`), else the words again.
        """
        words = _hash_words(self.text)
        group, hash_sign, _ = (self.id or "").partition("#")
        return (hash64(group.encode()) if hash_sign else words), words


def hash64(content: bytes) -> int:
    """The hash that documents are told apart by."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


_PIECE_CHARS = 2**20


def _hash_words(text: str) -> int:
    """`hash64` of the words of `text` with one space between them; a piece at a time, since words are many objects."""
    if len(text) <= _PIECE_CHARS:
        return hash64(" ".join(text.split()).encode())
    digest = hashlib.blake2b(digest_size=8)
    separator = b""
    for piece in pieces(text, _PIECE_CHARS):
        if words := piece.split():
            digest.update(separator + " ".join(words).encode())
            separator = b" "
    return int.from_bytes(digest.digest(), "big")


def pieces(text: str, size: int) -> Iterator[str]:
    """`text` cut into pieces of at most `size` characters, where it can be before the white space behind a word.

    A byte-level tokenizer's words begin with the space before them, so such a cut parts no two of its tokens. Where
    there is no white space within 64 Ki characters, the cut falls at `size`.
    """
    start = 0
    while len(text) - start > size:
        end = start + size
        floor = max(start + 1, end - _LOOK_BACK)
        cut = next((i for i in range(end, floor - 1, -1) if text[i].isspace() and not text[i - 1].isspace()), end)
        yield text[start:cut]
        start = cut
    yield text[start:]


_LOOK_BACK = 64 * 1024
