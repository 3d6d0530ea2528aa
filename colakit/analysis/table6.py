"""The paper's Table 6 at any sizes: as printed, and counted alike for Original and CoLA, forward and with backward."""

from collections.abc import Callable
from dataclasses import dataclass

from colakit.paper.claims import TABLE_6
from colakit.records.analysis import Table6Component, Table6Record

TRAINING = 3
"""Forward and backward against forward alone: each product needs two more, for the gradients of its two factors."""


@dataclass(frozen=True)
class Sizes:
    """The letters of Table 6: n tokens, d model width, r rank, d_ff feed-forward width."""

    n: int
    d: int
    r: int
    d_ff: int


_EVALUATE: dict[str, Callable[[Sizes], int]] = {
    "6nd²": lambda s: 6 * s.n * s.d**2,
    "48ndr": lambda s: 48 * s.n * s.d * s.r,
    "12ndr": lambda s: 12 * s.n * s.d * s.r,
    "4n²d": lambda s: 4 * s.n**2 * s.d,
    "2nd²": lambda s: 2 * s.n * s.d**2,
    "16ndr": lambda s: 16 * s.n * s.d * s.r,
    "4ndr": lambda s: 4 * s.n * s.d * s.r,
    "6nd·d_ff": lambda s: 6 * s.n * s.d * s.d_ff,
    "18nr(d+d_ff)": lambda s: 18 * s.n * s.r * (s.d + s.d_ff),
    "6nr(d+d_ff)": lambda s: 6 * s.n * s.r * (s.d + s.d_ff),
}

_COLA = {
    "attention Q, K, V": "12ndr",
    "attention product": "4n²d",
    "attention projection": "4ndr",
    "feed-forward": "6nr(d+d_ff)",
}
"""What the CoLA column would say if it counted as the Original column does: 2 FLOPs per entry of each A and B."""


def table6(sizes: Sizes) -> Table6Record:
    """Table 6 at `sizes`. The Original column counts the forward pass, so it is `dense_forward` too."""
    printed = {(claim.row, claim.column): claim.formula for claim in TABLE_6}
    components = tuple(
        _component(name, printed[name, "Original"], printed[name, "CoLA"], cola, sizes) for name, cola in _COLA.items()
    )
    return Table6Record(
        n=sizes.n, d=sizes.d, r=sizes.r, d_ff=sizes.d_ff, components=components, totals=_totals(components)
    )


def _component(name: str, dense: str, paper_cola: str, cola: str, sizes: Sizes) -> Table6Component:
    counts = [_EVALUATE[formula](sizes) for formula in (dense, paper_cola, cola)]
    return _evaluated(name, (dense, paper_cola, cola), counts)


def _totals(components: tuple[Table6Component, ...]) -> Table6Component:
    counts = [
        sum(c.dense_forward for c in components),
        sum(c.paper_cola for c in components),
        sum(c.cola_forward for c in components),
    ]
    return _evaluated("total", ("sum",) * 3, counts)


def _evaluated(name: str, formulas: tuple[str, ...], counts: list[int]) -> Table6Component:
    dense, paper_cola, cola = counts
    return Table6Component(
        name=name,
        dense_formula=formulas[0],
        paper_cola_formula=formulas[1],
        cola_formula=formulas[2],
        paper_dense=dense,
        paper_cola=paper_cola,
        dense_forward=dense,
        cola_forward=cola,
        dense_training=TRAINING * dense,
        cola_training=TRAINING * cola,
        paper_ratio=paper_cola / dense,
        ratio=cola / dense,
    )
