"""What the paper prints, as data: each figure with its unit, table, row, column, and the command that measures it here.

Columns and rows are in English. Nothing is computed here: `analysis.contradictions` finds what cannot be true together,
and the command line puts printed and counted side by side.
"""

from dataclasses import dataclass
from typing import Literal

from colakit.paper.claim import AnyClaim, Claim, FormulaClaim, Quantity, Reference, TextClaim
from colakit.paper.compute import TABLE_6, TABLE_6_CAPTION, TABLE_7
from colakit.paper.optimizers import TABLES_1_TO_3
from colakit.paper.systems import TABLES_4_AND_5
from colakit.paper.text_method import TEXT_METHOD
from colakit.paper.text_refinement import TEXT_REFINEMENT
from colakit.paper.text_results import TEXT_RESULTS

__all__ = [
    "CLAIMS",
    "PARTS",
    "TABLE_6",
    "AnyClaim",
    "Claim",
    "FormulaClaim",
    "Part",
    "Quantity",
    "Reference",
    "TextClaim",
    "claim",
]

CLAIMS: tuple[AnyClaim, ...] = (
    *TABLES_1_TO_3,
    *TABLES_4_AND_5,
    *TABLE_6_CAPTION,
    *TABLE_6,
    *TABLE_7,
    *TEXT_METHOD,
    *TEXT_RESULTS,
    *TEXT_REFINEMENT,
)
"""Every printed figure, in the paper's order of tables, then of sections."""


@dataclass(frozen=True)
class Part:
    """A table of the paper, or its running text, as ``colakit paper`` names it."""

    name: str
    caption: str
    metrics: Literal["rows", "columns"] = "columns"
    """Which side of the table names what is measured."""

    @property
    def title(self) -> str:
        """As the paper calls it."""
        return "Text" if self.name == "text" else f"Table {self.name.removeprefix('table')}"

    def holds(self, claim: AnyClaim) -> bool:
        """Whether `claim` is printed in this part."""
        return claim.table.startswith("§") if self.name == "text" else claim.table == self.title


PARTS = (
    Part("table1", "Muon against AdamW", "rows"),
    Part("table2", "training configuration", "rows"),
    Part("table3", "batch sizes"),
    Part("table4", "efficiency and quality on an RTX 4090"),
    Part("table5", "memory on an RTX 4090"),
    Part("table6", "FLOPs by component"),
    Part("table7", "detailed performance", "rows"),
    Part("text", "figures of the running text"),
)
"""The seven tables and the text; every claim is in exactly one."""


def claim(preset: str, quantity: Quantity) -> Claim | None:
    """The printed `quantity` of the shipped preset named `preset`, or None where the paper prints none.

    Where it is printed more than once, the first of `CLAIMS`: tables come before the text.
    """
    numbers = (c for c in CLAIMS if isinstance(c, Claim))
    return next((c for c in numbers if (c.preset, c.quantity) == (preset, quantity)), None)
