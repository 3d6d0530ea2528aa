"""Tables 4 and 5: parameters, speed, memory, largest batch and loss of the eight systems."""

from dataclasses import dataclass

from colakit.paper import methods
from colakit.paper.claim import CAPTION, AnyClaim, number, words


@dataclass(frozen=True)
class _Row:
    """A row of Tables 4 and 5 as printed; the speed and memory of Table 5 repeat Table 4's."""

    preset: str
    label: str
    parameters: str
    reduction: str
    it_per_s: str
    vram: str
    loss: str
    largest_batch: str


_ROWS = (
    _Row("original", "Original", "236M", "–", "3.00", "14.0", "4.50", "16"),
    _Row("cola", "CoLA", "156M", "33.9%", "5.00", "12.0", "4.52", "32"),
    _Row("cola-smollm2", "CoLA + SmolLM2", "86.2M", "63.5%", "6.67", "11.0", "4.49", "36"),
    _Row("cola-smollm2-muon", "CoLA + SmolLM2 + Muon", "86.2M", "63.5%", "5.20", "11.0", "4.46", "36"),
    _Row("cola-fan", "CoLA + FANformer + SmolLM2", "92.2M", "60.9%", "6.24", "11.2", "4.47", "32"),
    _Row("cola-fan-muon", "CoLA + FANformer + SmolLM2 + Muon", "92.2M", "60.9%", "4.88", "11.2", "4.43", "32"),
    _Row("cola-fan-dropout", "CoLA + FANformer + Dropout + SmolLM2", "92.2M", "60.9%", "5.68", "12.4", "4.45", "28"),
    _Row(
        "cola-fan-dropout-muon",
        "CoLA + FANformer + Dropout + SmolLM2 + Muon",
        "92.2M",
        "60.9%",
        "4.42",
        "12.4",
        "4.41",
        "28",
    ),
)


def _table_4(row: _Row) -> list[AnyClaim]:
    preset, where = row.preset, ("Table 4", row.label)
    bench = methods.bench(preset)
    reduction: AnyClaim = words(*where, "Reduction", row.reduction, methods.NOT_PRINTED, quantity="change")
    if row.reduction != "–":
        both = methods.params("original", preset)
        reduction = number(*where, "Reduction", row.reduction, "%", "change", both, preset=preset)
    return [
        number(*where, "Params.", row.parameters, "M", "parameters", methods.params(preset), preset=preset),
        reduction,
        number(*where, "it/s", row.it_per_s, "it/s", "it_per_s", bench, preset=preset),
        number(*where, "VRAM (GB)", row.vram, "GB", "vram", bench, preset=preset),
        number(*where, "Loss", row.loss, "nats per token", "loss", methods.train(preset), preset=preset),
    ]


def _table_5(row: _Row) -> list[AnyClaim]:
    preset, where = row.preset, ("Table 5", row.label)
    bench, largest = methods.bench(preset), methods.max_batch(preset)
    return [
        number(*where, "VRAM (GB)", row.vram, "GB", "vram", bench, preset=preset),
        number(*where, "it/s", row.it_per_s, "it/s", "it_per_s", bench, preset=preset),
        number(*where, "Max batch", row.largest_batch, "sequences", "largest_batch", largest, preset=preset),
    ]


TABLES_4_AND_5: tuple[AnyClaim, ...] = (
    *(claim for row in _ROWS for claim in _table_4(row)),
    number("Table 5", CAPTION, "batch size", "16", "sequences", "batch_size", methods.BUDGET),
    *(claim for row in _ROWS for claim in _table_5(row)),
)
"""Every cell of Tables 4 and 5, row by row, and the batch size of Table 5's caption."""
