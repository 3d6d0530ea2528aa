"""What one printed figure is: its value and how it is typeset, where it stands, and how it is measured here."""

import re
from dataclasses import dataclass
from typing import Literal

from colakit.paper.methods import Method

Quantity = Literal[
    "accuracy",
    "activation_memory",
    "bandwidth",
    "batch_size",
    "change",
    "communication",
    "duration",
    "examples",
    "examples_per_s",
    "flops",
    "gpu_stability",
    "gpu_util",
    "gpus",
    "gradient_memory",
    "it_per_s",
    "largest_batch",
    "loss",
    "loss_gap",
    "memory_thrashing",
    "optimizer_state",
    "parameters",
    "ratio",
    "seq_len",
    "setting",
    "statement",
    "step_ms",
    "steps",
    "tokens_per_s",
    "train_loss",
    "val_loss",
    "vocab_size",
    "vram",
]

Reference = tuple[str, str, str]
"""Table or section, row and column: unique among all claims."""

CAPTION = "caption"
"""The row of figures that stand in a table's caption."""


@dataclass(frozen=True)
class Cell:
    """Where a figure is printed, as what, and how it is measured here."""

    table: str
    """``Table 4``, or the section of a figure of the running text: ``§5.9``."""
    row: str
    column: str
    quantity: Quantity
    preset: str | None
    """The shipped preset that the figure is about, if it is about one."""
    printed: str
    """As the paper prints it, in English."""
    unit: str | None
    method: Method

    @property
    def reference(self) -> Reference:
        """Table, row and column."""
        return self.table, self.row, self.column

    @property
    def command(self) -> str | None:
        """The command line that measures this figure here; None where none does."""
        return self.method.command

    @property
    def untestable(self) -> str | None:
        """Why no command measures this figure here; None where one does."""
        return self.method.untestable


@dataclass(frozen=True)
class Claim(Cell):
    """One printed number."""

    value: float
    """In `unit`."""
    half_step: float = 0.0
    """Half a unit of the last printed digit, in `unit`; 0 for a count that is exact."""
    about: bool = False
    """Whether the paper itself says "about"."""


@dataclass(frozen=True)
class TextClaim(Cell):
    """One printed cell of words."""

    value: str | None
    """None where the paper prints a dash or N/A."""


@dataclass(frozen=True)
class FormulaClaim(Cell):
    """One printed cell of Table 6: a count of floating point operations as a formula."""

    formula: str
    """n tokens, d model width, d_ff feed-forward width, r rank."""

    @property
    def value(self) -> str:
        """The formula."""
        return self.formula


AnyClaim = Claim | TextClaim | FormulaClaim

_NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.(\d+))?(?:e([-+]?\d+))?")
_EXACT_UNITS = frozenset({"sequences", "GPUs", "× model size"})


def number(
    table: str,
    row: str,
    column: str,
    printed: str,
    unit: str,
    quantity: Quantity,
    method: Method,
    *,
    preset: str | None = None,
    value: float | None = None,
    half_step: float = 0.0,
    about: bool = False,
) -> Claim:
    """A printed number as a claim, its value and rounding read off `printed`.

    `value` is given where `printed` is a word or has one that scales the number, as in ``2.5 million``; a word that
    rounds, such as a tenth, has its `half_step` too.
    """
    found = _NUMBER.search(printed)
    if found is None:  # a word, such as double
        if value is None:
            raise ValueError(f"no number in {printed!r}")
        return Claim(table, row, column, quantity, preset, printed, unit, method, value, half_step, about)
    read = float(found.group().replace(",", "").replace("−", "-"))
    decimals, exponent = len(found.group(1) or ""), int(found.group(2) or 0)
    half_step = 0.0 if unit in _EXACT_UNITS else 0.5 * 10.0 ** (exponent - decimals)
    scale = 1.0 if value is None else value / read
    return Claim(
        table,
        row,
        column,
        quantity,
        preset,
        printed,
        unit,
        method,
        read * scale,
        half_step * scale,
        about,
    )


def words(
    table: str,
    row: str,
    column: str,
    printed: str,
    method: Method,
    *,
    quantity: Quantity = "statement",
    preset: str | None = None,
) -> TextClaim:
    """A printed cell of words; a dash and N/A have no value."""
    value = None if printed in ("N/A", "–") else printed
    return TextClaim(table, row, column, quantity, preset, printed, None, method, value)
