"""Tables 6 and 7: FLOPs by component, and the detailed measurements of five systems."""

from typing import Literal

from colakit.paper import methods
from colakit.paper.claim import CAPTION, AnyClaim, FormulaClaim, Quantity, number, words
from colakit.paper.methods import Method

_COUNT = methods.flops(d=768, r=192)


def _formula(row: str, column: Literal["Original", "CoLA"], formula: str) -> FormulaClaim:
    return FormulaClaim("Table 6", row, column, "flops", None, formula, "FLOPs", _COUNT, formula)


TABLE_6: tuple[FormulaClaim, ...] = (
    _formula("attention Q, K, V", "Original", "6nd²"),
    _formula("attention Q, K, V", "CoLA", "48ndr"),
    _formula("attention product", "Original", "4n²d"),
    _formula("attention product", "CoLA", "4n²d"),
    _formula("attention projection", "Original", "2nd²"),
    _formula("attention projection", "CoLA", "16ndr"),
    _formula("feed-forward", "Original", "6nd·d_ff"),
    _formula("feed-forward", "CoLA", "18nr(d+d_ff)"),
)
"""Table 6 as printed: the FLOPs of one layer by component."""

TABLE_6_CAPTION: tuple[AnyClaim, ...] = (
    number("Table 6", CAPTION, "d", "768", "features", "setting", methods.shows("cola")),
    number("Table 6", CAPTION, "r", "192", "features", "setting", _COUNT),
    number("Table 6", CAPTION, "d_ff", "2048", "features", "setting", methods.shows("cola")),
)
"""The sizes that Table 6's caption gives."""

TABLE_7_PRESETS = {
    "Original": "original",
    "CoLA+SmolLM2": "cola-smollm2",
    "CoLA+SmolLM2+Muon": "cola-smollm2-muon",
    "FANformer+SmolLM2": "cola-fan",
    "FANformer+SmolLM2+Muon": "cola-fan-muon",
}
"""Table 7's columns, and the preset of each."""

_TABLE_7: tuple[tuple[str, str, Quantity, Method | None, tuple[str, ...]], ...] = (
    ("GPU utilisation", "%", "gpu_util", None, ("87%", "96%", "75%", "94%", "72%")),
    ("time per batch (ms)", "ms", "step_ms", None, ("333", "150", "192", "160", "208")),
    ("activations (GB)", "GB", "activation_memory", None, ("14.0", "9.0", "9.0", "9.2", "9.2")),
    ("gradients (GB)", "GB", "gradient_memory", None, ("4.8", "3.0", "3.0", "3.2", "3.2")),
    ("bandwidth (GB/s)", "GB/s", "bandwidth", None, ("742", "893", "754", "876", "742")),
    ("memory thrashing", "", "memory_thrashing", methods.STATEMENT, ("mod.", "min.", "min.", "min.", "min.")),
    ("tokens/s", "tokens/s", "tokens_per_s", None, ("3,072", "6,827", "5,333", "6,400", "4,923")),
    ("GPU stability", "", "gpu_stability", methods.STATEMENT, ("high", "high", "low", "high", "low")),
)


def _table_7() -> list[AnyClaim]:
    claims: list[AnyClaim] = []
    for row, unit, quantity, method, cells in _TABLE_7:
        for (column, preset), cell in zip(TABLE_7_PRESETS.items(), cells, strict=True):
            counted = quantity in ("activation_memory", "gradient_memory")
            how = method or (methods.memory(preset, batch_size=32) if counted else methods.bench(preset, 32))
            if unit:
                claims.append(number("Table 7", row, column, cell, unit, quantity, how, preset=preset))
            else:
                claims.append(words("Table 7", row, column, cell, how, quantity=quantity, preset=preset))
    return claims


TABLE_7: tuple[AnyClaim, ...] = (
    number("Table 7", CAPTION, "batch", "32", "sequences", "batch_size", methods.BUDGET),
    number("Table 7", CAPTION, "seq_len", "1024", "tokens", "seq_len", methods.shows("original")),
    *_table_7(),
)
"""Every cell of Table 7, metric by metric, and the two figures of its caption."""
