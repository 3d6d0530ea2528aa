"""Printed figures by reference, and as the intervals that their rounding leaves open."""

from collections.abc import Iterable
from dataclasses import dataclass

from colakit.paper.claims import AnyClaim, Claim, FormulaClaim, Quantity, Reference, TextClaim

ABOUT_FRAC = 0.1
""""About" is taken as within a tenth."""


@dataclass(frozen=True)
class Interval:
    """All values between two positive bounds, or between any two where only sums and orders are asked for."""

    low: float
    high: float

    @classmethod
    def of(cls, claim: Claim) -> "Interval":
        """What the printed digits leave open; a tenth more on either side where the paper says "about"."""
        slack = claim.half_step + (ABOUT_FRAC * abs(claim.value) if claim.about else 0.0)
        return cls(claim.value - slack, claim.value + slack)

    def by(self, other: "Interval") -> "Interval":
        """All products; both intervals are positive."""
        return Interval(self.low * other.low, self.high * other.high)

    def over(self, other: "Interval") -> "Interval":
        """All quotients; both intervals are positive."""
        return Interval(self.low / other.high, self.high / other.low)

    def minus(self, other: "Interval") -> "Interval":
        """All differences."""
        return Interval(self.low - other.high, self.high - other.low)

    def times(self, factor: float) -> "Interval":
        """Scaled by a number of either sign."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Interval(low, high)

    def plus(self, term: float) -> "Interval":
        """Shifted by a number."""
        return Interval(self.low + term, self.high + term)

    def meets(self, other: "Interval") -> bool:
        """Whether some value is in both, floating point error aside."""
        slack = 1e-9 * max(abs(self.low), abs(self.high), abs(other.low), abs(other.high))
        return self.low <= other.high + slack and other.low <= self.high + slack


class Printed:
    """The claims under examination, by reference."""

    def __init__(self, claims: Iterable[AnyClaim]) -> None:
        self._claims = {claim.reference: claim for claim in claims}

    def __getitem__(self, reference: Reference) -> Claim:
        """The printed number at `reference`."""
        claim = self._claims[reference]
        assert isinstance(claim, Claim), reference
        return claim

    def words(self, reference: Reference) -> TextClaim:
        """The printed words at `reference`."""
        claim = self._claims[reference]
        assert isinstance(claim, TextClaim), reference
        return claim

    def formulas(self) -> dict[tuple[str, str], FormulaClaim]:
        """Table 6 by row and column."""
        return {(c.row, c.column): c for c in self._claims.values() if isinstance(c, FormulaClaim)}

    def numbers(self, table: str, quantity: Quantity) -> list[Claim]:
        """The printed numbers of one kind in one table, in the paper's order; a caption's are left out."""
        return [
            c
            for c in self._claims.values()
            if isinstance(c, Claim) and (c.table, c.quantity) == (table, quantity) and c.row != "caption"
        ]

    def of_preset(self, preset: str, table: str, quantity: Quantity) -> Claim:
        """The one number of `quantity` that `table` prints for `preset`."""
        (claim,) = (c for c in self.numbers(table, quantity) if c.preset == preset)
        return claim
