"""What a check hands out: the printed figures that cannot be true together, and the arithmetic that says so."""

from dataclasses import dataclass

from colakit.paper.claims import Claim, FormulaClaim, Reference, TextClaim


@dataclass(frozen=True)
class Contradiction:
    """Printed figures that exclude each other or physics."""

    identifier: str
    claims: tuple[Reference, ...]
    """The figures that cannot stand."""
    evidence: tuple[Reference, ...]
    """Further figures that the computation reads; they may well be true."""
    figures: tuple[tuple[str, float], ...]
    """What was computed: name and value."""
    summary: str
    """The finding in a line."""
    detail: str
    """The arithmetic behind it."""

    @property
    def sentence(self) -> str:
        """Finding and arithmetic, without a full stop."""
        return f"{self.summary}: {self.detail}"

    @property
    def places(self) -> tuple[str, ...]:
        """The tables and sections whose figures cannot stand."""
        return tuple(dict.fromkeys(table for table, _, _ in self.claims))


def references(*claims: Claim | TextClaim | FormulaClaim) -> tuple[Reference, ...]:
    """The references of `claims`, each once, in order."""
    return tuple(dict.fromkeys(claim.reference for claim in claims))


def place(claim: Claim | TextClaim | FormulaClaim) -> str:
    """Where a claim is printed, in words."""
    return f"{claim.table} ({claim.row}, {claim.column})"


def show(value: float) -> str:
    """A computed figure in four significant digits, thousands with commas."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def spread(values: list[float]) -> str:
    """The range of computed figures, from least to most."""
    least, most = show(min(values)), show(max(values))
    return least if least == most else f"{least} to {most}"
