"""All checks over all printed figures, and which of them concern one claim."""

from collections.abc import Callable, Iterator
from functools import cache

from colakit.analysis.contradictions.derived import check_derived
from colakit.analysis.contradictions.flops import check_table_6
from colakit.analysis.contradictions.losses import check_losses
from colakit.analysis.contradictions.printed import Printed
from colakit.analysis.contradictions.record import Contradiction
from colakit.analysis.contradictions.sizes import check_sizes
from colakit.analysis.contradictions.speeds import check_speeds
from colakit.analysis.contradictions.table3 import check_table_3
from colakit.analysis.contradictions.table7 import check_table_7
from colakit.paper.claims import CLAIMS, AnyClaim

_CHECKS: tuple[Callable[[Printed], Iterator[Contradiction]], ...] = (
    check_table_3,
    check_table_6,
    check_table_7,
    check_sizes,
    check_losses,
    check_speeds,
    check_derived,
)


@cache
def find_contradictions(claims: tuple[AnyClaim, ...] = CLAIMS) -> tuple[Contradiction, ...]:
    """What cannot be true together among `claims`: all of the paper's, as printed or corrected.

    Each is computed from the figures and vanishes with the figure that causes it.
    """
    printed = Printed(claims)
    return tuple(found for check in _CHECKS for found in check(printed))


def contradictions_of(claim: AnyClaim) -> tuple[Contradiction, ...]:
    """The contradictions of the paper as printed that `claim` is a party to."""
    return tuple(found for found in find_contradictions() if claim.reference in found.claims)


def contradiction_of(claim: AnyClaim) -> str | None:
    """Why `claim` cannot stand, in words without a full stop; None where nothing speaks against it."""
    return "; ".join(found.sentence for found in contradictions_of(claim)) or None
