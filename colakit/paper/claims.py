"""What the paper prints, as data: each figure with its unit, table, row and column, and what contradicts it.

Columns and rows are in English; §6's figures stand in running text. Nothing is computed here: `analysis` counts, and
the command line puts both side by side. So far: Tables 4 and 5, §6's two refined models, and Table 6.
"""

from dataclasses import dataclass
from typing import Literal

Quantity = Literal["parameters", "it_per_s", "vram", "largest_batch", "loss", "val_loss"]


@dataclass(frozen=True)
class Claim:
    """One printed figure about one preset."""

    preset: str
    quantity: Quantity
    value: float
    """In `unit`, as printed."""
    unit: str
    table: str
    """The table or section it is printed in."""
    row: str
    column: str
    contradiction: str | None = None
    """Why it cannot be met, where other figures of the paper exclude it."""


@dataclass(frozen=True)
class FormulaClaim:
    """One printed cell of Table 6: a count of floating point operations as a formula."""

    formula: str
    """n tokens, d model width, d_ff feed-forward width, r rank."""
    unit: str
    table: str
    row: str
    column: Literal["Original", "CoLA"]
    contradiction: str | None = None


@dataclass(frozen=True)
class _Row:
    """A row of Tables 4 and 5; the speed and memory of Table 5 repeat Table 4's."""

    preset: str
    label: str
    parameters_m: float
    it_per_s: float
    vram_gb: float
    loss: float
    largest_batch: int
    parameters_contradiction: str | None = None


_TABLES_4_AND_5 = (
    _Row(
        "original",
        "Original",
        parameters_m=236.0,
        it_per_s=3.00,
        vram_gb=14.0,
        loss=4.50,
        largest_batch=16,
    ),
    _Row(
        "cola",
        "CoLA",
        parameters_m=156.0,
        it_per_s=5.00,
        vram_gb=12.0,
        loss=4.52,
        largest_batch=32,
        parameters_contradiction=(
            "no depth and width gives 156M together with the table's other rows, and §5.1 says 150M for the same model"
        ),
    ),
    _Row(
        "cola-smollm2",
        "CoLA + SmolLM2",
        parameters_m=86.2,
        it_per_s=6.67,
        vram_gb=11.0,
        loss=4.49,
        largest_batch=36,
    ),
    _Row(
        "cola-smollm2-muon",
        "CoLA + SmolLM2 + Muon",
        parameters_m=86.2,
        it_per_s=5.20,
        vram_gb=11.0,
        loss=4.46,
        largest_batch=36,
    ),
    _Row(
        "cola-fan",
        "CoLA + FANformer + SmolLM2",
        parameters_m=92.2,
        it_per_s=6.24,
        vram_gb=11.2,
        loss=4.47,
        largest_batch=32,
    ),
    _Row(
        "cola-fan-muon",
        "CoLA + FANformer + SmolLM2 + Muon",
        parameters_m=92.2,
        it_per_s=4.88,
        vram_gb=11.2,
        loss=4.43,
        largest_batch=32,
    ),
    _Row(
        "cola-fan-dropout",
        "CoLA + FANformer + Dropout + SmolLM2",
        parameters_m=92.2,
        it_per_s=5.68,
        vram_gb=12.4,
        loss=4.45,
        largest_batch=28,
    ),
    _Row(
        "cola-fan-dropout-muon",
        "CoLA + FANformer + Dropout + SmolLM2 + Muon",
        parameters_m=92.2,
        it_per_s=4.42,
        vram_gb=12.4,
        loss=4.41,
        largest_batch=28,
    ),
)


def _claims_of(row: _Row) -> tuple[Claim, ...]:
    def claim(quantity: Quantity, value: float, unit: str, table: str, column: str) -> Claim:
        contradiction = row.parameters_contradiction if quantity == "parameters" else None
        return Claim(row.preset, quantity, value, unit, table, row.label, column, contradiction)

    return (
        claim("parameters", row.parameters_m, "M", "Table 4", "Params."),
        claim("it_per_s", row.it_per_s, "it/s", "Table 4", "it/s"),
        claim("vram", row.vram_gb, "GB", "Table 4", "VRAM (GB)"),
        claim("loss", row.loss, "nats per token", "Table 4", "Loss"),
        claim("largest_batch", row.largest_batch, "sequences", "Table 5", "Max batch"),
    )


_UNTIED, _TIED = "refined, not tied", "refined, tied"

CLAIMS: tuple[Claim, ...] = (
    *(claim for row in _TABLES_4_AND_5 for claim in _claims_of(row)),
    Claim("refined", "parameters", 92.2, "M", "§6.2.3", _UNTIED, "Params."),
    Claim("refined", "val_loss", 4.104, "nats per token", "§6.2.4", _UNTIED, "Validation loss"),
    Claim("refined-tied", "parameters", 82.2, "M", "§6.2.3", _TIED, "Params."),
    Claim("refined-tied", "val_loss", 4.065, "nats per token", "§6.2.4", _TIED, "Validation loss"),
)
"""Every printed figure that belongs to a preset."""

_MIXED = "forward and backward pass counted together (3×), where the Original column counts the forward pass alone"
_MIXED_SUM = f"{_MIXED}; the sum over Q, K, V and the output projection"

TABLE_6: tuple[FormulaClaim, ...] = (
    FormulaClaim("6nd²", "FLOPs", "Table 6", "attention Q, K, V", "Original"),
    FormulaClaim("48ndr", "FLOPs", "Table 6", "attention Q, K, V", "CoLA", _MIXED_SUM),
    FormulaClaim("4n²d", "FLOPs", "Table 6", "attention product", "Original"),
    FormulaClaim("4n²d", "FLOPs", "Table 6", "attention product", "CoLA"),
    FormulaClaim("2nd²", "FLOPs", "Table 6", "attention projection", "Original"),
    FormulaClaim(
        "16ndr",
        "FLOPs",
        "Table 6",
        "attention projection",
        "CoLA",
        "the sum over Q, K, V and the output projection, forward alone",
    ),
    FormulaClaim("6nd·d_ff", "FLOPs", "Table 6", "feed-forward", "Original"),
    FormulaClaim("18nr(d+d_ff)", "FLOPs", "Table 6", "feed-forward", "CoLA", _MIXED),
)
"""Table 6 as printed: the FLOPs of one layer by component."""


def claim(preset: str, quantity: Quantity) -> Claim | None:
    """The printed `quantity` of the shipped preset named `preset`, or None where the paper prints none."""
    return next((c for c in CLAIMS if (c.preset, c.quantity) == (preset, quantity)), None)
