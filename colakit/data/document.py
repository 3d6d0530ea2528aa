"""What a source yields, and what it does with a record it cannot read."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NoReturn, TypeAlias

from colakit.errors import DataError

OnBad: TypeAlias = Callable[[DataError], None]
"""Is told of a record that cannot be read. Where it returns, the record is left out and reading goes on."""


def fail(error: DataError) -> NoReturn:
    """The `OnBad` that ends the run."""
    raise DataError(f"{error} To leave such records out, and have them counted: --on-bad-record skip.") from error


@dataclass(frozen=True, slots=True)
class Document:
    """One text, with the name its source gives it. Documents of one group are never split over two sides."""

    text: str
    id: str | None = None
    piece: int | None = None
    """Which piece it is of a text that its reader cut."""

    def hashes(self) -> tuple[int, int]:
        """Of group and text, each uniform in 0 … 2⁶⁴ − 1.

        The text's is that of all but its ASCII white space and no-break spaces: equal for copies that differ in line
        ends or layout. The group is the part of `id` before ``#`` where there is one (`book#3` belongs to `book`), else
        the text again. A piece is a group by its number, so that it stays one when the text grows. The hashes are
        multiples of the golden ratio (Knuth, The Art of Computer Programming, vol. 3, section 6.4), spread so evenly
        that of any n pieces in a row about f · n are below f · 2⁶⁴, and the second piece is below any.
        """
        digest = _digest()
        for start in range(0, len(self.text), _HASHED_CHARS):
            part = self.text[start : start + _HASHED_CHARS].encode()
            digest.update(part.translate(None, _ASCII_SPACE).replace(_NO_BREAK_SPACE, b""))
        text = int.from_bytes(digest.digest(), "big")
        if self.piece is not None:
            return (self.piece - 1) * _GOLDEN_RATIO % 2**64, text
        group, hash_sign, _ = (self.id or "").partition("#")
        return (hash64(group.encode()) if hash_sign else text), text


def id_of(value: object) -> str | None:
    """The id that a record's ``id`` is: a string or a whole number; anything else is none."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


_digest = partial(hashlib.blake2b, digest_size=8)
_HASHED_CHARS = 2**20
_GOLDEN_RATIO = 0x9E3779B97F4A7C15  # its fraction, as a 64-bit number
_ASCII_SPACE = b" \t\n\r\v\f"
_NO_BREAK_SPACE = "\u00a0".encode()


def hash64(content: bytes) -> int:
    """The hash that documents are told apart by."""
    return int.from_bytes(_digest(content).digest(), "big")


def cut_between_words(text: str, size: int) -> Iterator[str]:
    """`text` cut into parts of at most `size` characters, where a byte-level tokenizer's words end.

    Those begin with the space before them and hold letters or other characters, not both, so that no token is parted.
    Of the last 64 Ki characters, the last place of the best kind is taken; without any, the cut falls at `size`.
    """
    start = 0
    while len(text) - start > size:
        cut = _cut(text, max(start + 1, start + size - _LOOK_BACK), start + size)
        yield text[start:cut]
        start = cut
    yield text[start:]


_LOOK_BACK = 64 * 1024
_WORD_ENDS: tuple[Callable[[str, str], bool], ...] = (
    # A blank: other white space can belong to the punctuation before it (Llama 3, Qwen).
    lambda last, following: following == " " and not last.isspace(),
    # U+001C … U+001F are white space to Python alone.
    lambda last, following: following.isspace() and not last.isspace() and following not in "\x1c\x1d\x1e\x1f",
    lambda last, following: last.isalpha() and not following.isalpha(),
)
"""Of the characters before and behind a cut, the best kind first."""


def _cut(text: str, least: int, most: int) -> int:
    places = range(most, least - 1, -1)
    return next((i for ends in _WORD_ENDS for i in places if ends(text[i - 1], text[i])), most)
