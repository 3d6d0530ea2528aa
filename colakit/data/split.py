"""Which documents are held out: those whose group has a hash, read as a number in [0, 1), below ``val_fraction``.

Nothing else of a corpus is asked, so that what is held out of it stays so, however the corpus grows. A rule that finds
something in every small corpus could not keep that; there, a larger ``val_fraction`` is named instead.
"""

import logging
import math
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
_ADVICE = "give more documents, or a single .txt of more than 32 KiB by its own name"


class Side(IntEnum):
    """What a document is used for."""

    TRAIN = 0
    HELD_OUT = 1
    DUPLICATE = 2
    """Dropped: training would see a text that is held out, or another part of its group."""


Sides: TypeAlias = NDArray[np.uint8]
"""[N] the `Side` of each document."""


def split_sources(facts: Sequence[Facts], val_fraction: float, labels: Sequence[str]) -> list[Sides]:
    """The sides of the documents of each source. A text that one holds out, no other trains on.

    Raises DataError, naming the source, where one of its sides would be empty.
    """
    held_out = [_is_below(source.groups, val_fraction) for source in facts]
    texts = np.unique(np.concatenate([source.texts[held] for source, held in zip(facts, held_out, strict=True)]))
    found = []
    for source, held, label in zip(facts, held_out, labels, strict=True):
        sides = np.where(np.isin(source.texts, texts), Side.DUPLICATE, Side.TRAIN).astype(np.uint8)
        sides[held] = Side.HELD_OUT
        _check(source, sides, val_fraction, label)
        found.append(sides)
    return found


def _is_below(groups: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    return groups < np.uint64(min(2**64 - 1, int(fraction * 2**64)))


def _check(facts: Facts, sides: Sides, val_fraction: float, label: str) -> None:
    n_groups = len(np.unique(facts.groups))
    if n_groups < 2:
        raise DataError(
            f"{label} is one group of documents, which is never divided, so that nothing can be held out of it. "
            "Documents are one group whose ids are the same before a '#', whose texts are equal, or who are of one "
            f".txt in a folder. To have more groups, {_ADVICE}."
        )
    if not (sides == Side.HELD_OUT).any():
        fraction = _least_fraction(facts)
        would = facts.n_bytes[_is_below(facts.groups, fraction)]
        raise DataError(
            f"{label}: none of its {n_groups} groups of documents has a hash below data.val_fraction = "
            f"{val_fraction:g}, so that nothing is held out to evaluate on. Use --set data.val_fraction={fraction}, "
            f"which holds out {human_count(would.sum())}B of its {human_count(facts.n_bytes.sum())}B, and as large a "
            f"share of every other source; or {_ADVICE}."
        )
    if not (sides == Side.TRAIN).any():
        raise DataError(
            f"{label} leaves nothing to train on. Lower data.val_fraction, which at {val_fraction:g} holds out "
            f"{(sides == Side.HELD_OUT).sum()} document(s), and {(sides == Side.DUPLICATE).sum()} more repeat their "
            f"text; or {_ADVICE}."
        )


def warn_of_shares(facts: Facts, sides: Sides, val_fraction: float, label: str) -> None:
    """Log where far more or less is held out than asked for, or much dropped."""
    n_dropped = int((sides == Side.DUPLICATE).sum())
    if n_dropped > _LOPSIDED_SHARE * len(sides):
        told = "%s: %d of %d documents are dropped: their text is among what is held out."
        log.warning(told, label, n_dropped, len(sides))
    held_out_bytes, text_bytes = int(facts.n_bytes[sides == Side.HELD_OUT].sum()), int(facts.n_bytes.sum())
    is_much = held_out_bytes > max(_LOPSIDED_SHARE, _LOPSIDED_FACTOR * val_fraction) * text_bytes
    is_little = _is_little(held_out_bytes, text_bytes, val_fraction)
    if is_much or is_little:
        log.warning(
            "%s: %sB of %sB of text are held out, though data.val_fraction is %g: its %d groups are few, or of very "
            "different sizes. %s data.val_fraction changes that.",
            label,
            human_count(held_out_bytes),
            human_count(text_bytes),
            val_fraction,
            len(np.unique(facts.groups)),
            "A higher" if is_little else "More text, or a lower",
        )


def _least_fraction(facts: Facts) -> float:
    """The smallest number of few decimals that holds out some groups and not all, and not far less text than it says.

    Where there is none, the smallest that holds out some.
    """
    groups = np.unique(facts.groups)
    found: list[float] = []
    for group in groups[:-1].tolist():
        fractions = (math.ceil(group / 2**64 * 10.0**decimals) / 10.0**decimals for decimals in range(2, 17))
        found.append(next(f for f in fractions if 0 < np.count_nonzero(_is_below(groups, f)) < len(groups)))
        held_out_bytes = facts.n_bytes[_is_below(facts.groups, found[-1])].sum()
        if not _is_little(held_out_bytes, facts.n_bytes.sum(), found[-1]):
            return found[-1]
    return found[0]


def _is_little(held_out_bytes: int, text_bytes: int, val_fraction: float) -> bool:
    return _LOPSIDED_FACTOR * held_out_bytes < val_fraction * text_bytes
