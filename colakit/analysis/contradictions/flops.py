"""Table 6 against what its components compute, and against the text's saving."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from colakit.analysis.contradictions.printed import Interval, Printed
from colakit.analysis.contradictions.record import Contradiction, references, show
from colakit.paper.claims import FormulaClaim

_TOKEN = re.compile(r"(?P<number>\d+)|(?P<sum>\(d\+d_ff\))|(?P<letter>d_ff|[ndr])|(?P<square>²)|·")
_QKV, _OUTPUT = "attention Q, K, V", "attention projection"


@dataclass(frozen=True)
class _Sizes:
    """The letters of Table 6."""

    n: int
    d: int
    r: int
    d_ff: int

    def shapes(self, row: str) -> tuple[tuple[int, int], ...]:
        """(d_in, d_out) of the projections that a row of Table 6 counts; the attention product has none."""
        return {
            _QKV: ((self.d, self.d),) * 3,
            "attention product": (),
            _OUTPUT: ((self.d, self.d),),
            "feed-forward": ((self.d, self.d_ff), (self.d, self.d_ff), (self.d_ff, self.d)),
        }[row]


def evaluate(formula: str, *, n: int, d: int, r: int, d_ff: int) -> int:
    """A formula of Table 6 in numbers: a product of digits, letters, squares and ``(d+d_ff)``."""
    letters = {"n": n, "d": d, "r": r, "d_ff": d_ff}
    value, last, end = 1, 1, 0
    for token in _TOKEN.finditer(formula):
        if token.start() != end:
            break
        end = token.end()
        if token["number"]:
            last = int(token["number"])
        elif token["sum"]:
            last = d + d_ff
        elif token["letter"]:
            last = letters[token["letter"]]
        elif not token["square"]:
            last = 1
        value *= last
    if end != len(formula):
        raise ValueError(f"{formula!r} is not a product at {formula[end:]!r}")
    return value


def _forward(claim: FormulaClaim, sizes: _Sizes) -> int:
    """FLOPs of the forward pass of one component: a multiply and an add per entry of each matrix and token."""
    shapes = sizes.shapes(claim.row)
    if not shapes:
        return 4 * sizes.n**2 * sizes.d
    if claim.column == "Original":
        return 2 * sizes.n * sum(d_in * d_out for d_in, d_out in shapes)
    return 2 * sizes.n * sum(sizes.r * (d_in + d_out) for d_in, d_out in shapes)


def check_table_6(printed: Printed) -> Iterator[Contradiction]:
    """Table 6's two columns count alike, and save what §5.6 says."""
    caption = {letter: int(printed["Table 6", "caption", letter].value) for letter in ("d", "r", "d_ff")}
    sizes = _Sizes(n=int(printed["Table 7", "caption", "seq_len"].value), **caption)
    cells = printed.formulas()
    count = {key: evaluate(c.formula, n=sizes.n, **caption) for key, c in cells.items()}
    forward = {key: _forward(c, sizes) for key, c in cells.items()}
    yield from _conventions(cells, count, forward)
    yield from _saving(printed, cells, count, forward)


_Cells = dict[tuple[str, str], FormulaClaim]
_Counts = dict[tuple[str, str], int]


def _conventions(cells: _Cells, count: _Counts, forward: _Counts) -> Iterator[Contradiction]:
    times = {key: count[key] / forward[key] for key in cells}
    wrong = [key for key in cells if times[key] != 1]
    if not wrong:
        return
    right = [key for key in cells if key not in wrong]
    all_four = forward[_QKV, "CoLA"] + forward[_OUTPUT, "CoLA"]
    figures = [(f"{cells[key].formula} / forward pass", times[key]) for key in wrong]
    sums = [
        (f"{cells[row, 'CoLA'].formula} / forward of all four", count[row, "CoLA"] / all_four)
        for row in (_QKV, _OUTPUT)
    ]
    yield Contradiction(
        "table6-conventions",
        references(*(cells[key] for key in wrong)),
        references(*(cells[key] for key in right)),
        (*figures, *sums),
        f"Table 6 counts {len(wrong)} of its {len(cells)} cells in another way than the rest",
        "over the forward pass, "
        + ", ".join(f"{cells[key].formula} ({key[0]}) is {show(times[key])}×" for key in wrong)
        + f", the other {len(right)} cells 1×; over the forward pass of Q, K, V and output projection together, "
        + " and ".join(
            f"{cells[row, 'CoLA'].formula} is {show(value)}×"
            for row, (_, value) in zip((_QKV, _OUTPUT), sums, strict=True)
        ),
    )


def _saving(printed: Printed, cells: _Cells, count: _Counts, forward: _Counts) -> Iterator[Contradiction]:
    claim = printed["§5.6", "CoLA at r = d/4", "operations saved"]

    def saved(counts: _Counts) -> float:
        total = {column: sum(n for (_, c), n in counts.items() if c == column) for column in ("Original", "CoLA")}
        return 100 * (1 - total["CoLA"] / total["Original"])

    as_printed, alike = saved(count), saved(forward)
    if Interval.of(claim).meets(Interval(as_printed, as_printed)):
        return
    rows = list(dict.fromkeys(row for row, _ in cells))
    ratio = {row: count[row, "CoLA"] / count[row, "Original"] for row in rows}
    yield Contradiction(
        "table6-saving",
        references(*(cells[row, "CoLA"] for row in rows if ratio[row] >= 1 and row != "attention product"), claim),
        references(*(cells[row, "Original"] for row in rows)),
        (
            ("saved as printed, %", as_printed),
            ("saved counted alike, %", alike),
            *((f"CoLA / Original, {r}", ratio[r]) for r in rows),
        ),
        f"Table 6 as printed changes the operations by {-as_printed:+.1f} %, where §5.6 saves about {claim.printed}",
        "CoLA over Original is "
        + ", ".join(f"{show(ratio[row])} ({row})" for row in rows)
        + f"; both counted as forward passes, CoLA saves {alike:.1f} %",
    )
