"""Which documents are held out, decided by content: the same document falls on the same side in every run and order.

The hash of a document's group, read as a number in [0, 1), is compared with ``val_fraction``. Sizes matter in two cases
only: a group of more than half the text is never held out, and where no hash is small enough, one group of at most
average size is, so that a small corpus has something to evaluate on and n groups hold out at most 1/n of the text.
"""

import logging
from collections.abc import Sequence
from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from colakit.data.store import Facts
from colakit.errors import DataError
from colakit.units import human_count

log = logging.getLogger(__name__)

_LOPSIDED_SHARE = 0.2
_LOPSIDED_FACTOR = 5.0
_ADVICE = "give a .txt longer than 32 KiB, or several documents"


class Side(IntEnum):
    """What a document is used for."""

    TRAIN = 0
    HELD_OUT = 1
    DUPLICATE = 2
    """Dropped: training would see a text that is held out, or another part of its group."""


Sides: TypeAlias = NDArray[np.uint8]
"""[N] the `Side` of each document."""


def split_sources(facts: Sequence[Facts], val_fraction: float, labels: Sequence[str]) -> list[Sides]:
    """The sides of the documents of each source. Of a text or group that one holds out, no other trains on a part.

    Logs a warning where far more or less is held out than asked for. Raises DataError, naming the source, where one of
    its sides would be empty.
    """
    held_out = [_held_out(source, val_fraction) for source in facts]
    pairs = list(zip(facts, held_out, strict=True))
    texts = np.unique(np.concatenate([source.texts[held] for source, held in pairs]))
    groups = np.unique(np.concatenate([source.groups[held] for source, held in pairs]))
    found = []
    for source, held, label in zip(facts, held_out, labels, strict=True):
        repeats = np.isin(source.texts, texts) | np.isin(source.groups, groups)
        sides = np.where(repeats, Side.DUPLICATE, Side.TRAIN).astype(np.uint8)
        sides[held] = Side.HELD_OUT
        _check(source, sides, val_fraction, label)
        found.append(sides)
    return found


def _held_out(facts: Facts, val_fraction: float) -> NDArray[np.bool_]:
    """[N] whether each document is of a held-out group."""
    groups, of_document = np.unique(facts.groups, return_inverse=True)
    if len(groups) == 0:
        return np.zeros(0, dtype=bool)
    sizes = np.bincount(of_document, weights=facts.n_bytes)
    total = sizes.sum()
    chosen = (groups < np.uint64(min(2**64 - 1, int(val_fraction * 2**64)))) & (2 * sizes <= total)
    if not chosen.any():
        # For want of a smaller hash; a document that is added later may have it, and take this one's place.
        chosen[int(np.argmax(sizes * len(groups) <= total))] = True  # the smallest hash of those
    return np.asarray(chosen[of_document])


def _check(facts: Facts, sides: Sides, val_fraction: float, label: str) -> None:
    n_held_out, n_dropped = (int((sides == side).sum()) for side in (Side.HELD_OUT, Side.DUPLICATE))
    if len(np.unique(facts.groups)) < 2:
        raise DataError(
            f"{label} holds too little text to hold some out: {_ADVICE}. It is one group of "
            f"{n_held_out} document(s), and a group is never divided; ids such as 'book#1' and 'book#2' "
            "are one group, and so are equal texts."
        )
    if not (sides == Side.TRAIN).any():
        raise DataError(
            f"{label} leaves nothing to train on: {_ADVICE}, or lower data.val_fraction. At {val_fraction} it holds "
            f"out {n_held_out} document(s), and {n_dropped} more repeat their text."
        )
    if n_dropped > _LOPSIDED_SHARE * len(sides):
        log.warning(
            "%s: %d of %d documents are dropped: their text, or the name of their group (what is before # in an id), "
            "is among what is held out.",
            label,
            n_dropped,
            len(sides),
        )
    held_out_bytes, text_bytes = int(facts.n_bytes[sides == Side.HELD_OUT].sum()), int(facts.n_bytes.sum())
    is_much = held_out_bytes > max(_LOPSIDED_SHARE, _LOPSIDED_FACTOR * val_fraction) * text_bytes
    is_little = _LOPSIDED_FACTOR * held_out_bytes < val_fraction * text_bytes
    if is_much or is_little:
        log.warning(
            "%s: %s B of %s B of text are held out, though data.val_fraction is %g: there are few documents, or large "
            "groups of them. %s.",
            label,
            human_count(held_out_bytes),
            human_count(text_bytes),
            val_fraction,
            "Raise it" if is_little else "Give more, or ids that make smaller groups",
        )
