"""Figures of the running text, §2 to §5.1: architecture, Muon, tokenizer.

A figure that the abstract, §1 or §7 repeats is listed where sections 2 to 6 print it. A figure that repeats a cell of a
table is that cell's claim. What the text quotes of other papers is listed only where it is a range for a setting here.
"""

from colakit.paper import methods
from colakit.paper.claim import AnyClaim, number, words

_FAN_SIZES = (("300M", "0.10", "0.15"), ("1B", "0.15", "0.25"), ("3B+", "0.25", "0.35"))
_HYBRID, _PRE = "cola-smollm2", "cola-smollm2 --set model.norm=pre"

L2_NORM = "L2 (F.normalize)"
"""The norm of Q, K and V in §2.1.1's listing."""

TEXT_METHOD: tuple[AnyClaim, ...] = (
    words("§2.1.1", "eq. 3", "norm of Q, K and V", "Norm", methods.DEFINITION, quantity="setting"),
    words("§2.1.1", "listing", "norm of Q, K and V", L2_NORM, methods.DEFINITION, quantity="setting"),
    number(
        *("§2.1.4", "HybridNorm against standard norms", "speed gain", "12%", "%", "change"),
        methods.bench_both(_HYBRID, _PRE),
        about=True,
    ),
    number(
        *("§2.1.4", "HybridNorm against standard norms", "validation loss, lower by at least", "4%", "%", "change"),
        methods.train_both(_HYBRID, _PRE),
    ),
    number(
        *("§2.1.4", "HybridNorm against standard norms", "validation loss, lower by at most", "5%", "%", "change"),
        methods.train_both(_HYBRID, _PRE),
    ),
    number("§2.2", "Figure 3", "energy of the effective rank", "95%", "%", "setting", methods.spectrum()),
    number("§2.3.2", "FAN ratio p", "typical", "0.15", "", "setting", methods.shows("cola-fan"), preset="cola-fan"),
    number("§2.3.2", "FAN ratio p", "least, by model size", "0.1", "", "setting", methods.OTHER_PAPER),
    number("§2.3.2", "FAN ratio p", "most, by model size", "0.3", "", "setting", methods.OTHER_PAPER),
    number(
        *("§2.3.4", "CoLA_FAN", "parameters added", "7%", "%", "change"),
        methods.params("cola-smollm2", "cola-fan"),
        about=True,
    ),
    number(
        *("§2.3.4", "CoLA_FAN without dropout", "VRAM added", "0.2", "GB", "vram"),
        methods.bench_both("cola-smollm2", "cola-fan"),
        about=True,
    ),
    number("§2.3.4", "CoLA_FAN with dropout", "VRAM before", "11.5", "GB", "vram", methods.bench("cola-fan")),
    number("§2.3.4", "CoLA_FAN with dropout", "VRAM after", "12.4", "GB", "vram", methods.bench("cola-fan-dropout")),
    number(
        *("§2.3.4", "CoLA_FAN with dropout", "VRAM added", "8%", "%", "change"),
        methods.bench_both("cola-fan", "cola-fan-dropout"),
        about=True,
    ),
    number(
        *("§2.3.4", "CoLA_FAN without dropout", "it/s lost", "6.4%", "%", "change"),
        methods.bench_both("cola-smollm2", "cola-fan"),
    ),
    *(
        number("§2.3.5", f"FAN ratio p at {size}", bound, printed, "", "setting", methods.OTHER_PAPER)
        for size, *bounds in _FAN_SIZES
        for bound, printed in zip(("least", "most"), bounds, strict=True)
    ),
    number(
        "§3.2", "FineWeb-Edu", "training examples", "2.5 million", "examples", "examples", methods.BUDGET, value=2.5e6
    ),
    number("§4.1.2", "Newton-Schulz", "a", "3.4445", "", "setting", methods.DEFINITION),
    number("§4.1.2", "Newton-Schulz", "b", "-4.7750", "", "setting", methods.DEFINITION),
    number("§4.1.2", "Newton-Schulz", "c", "2.0315", "", "setting", methods.DEFINITION),
    number(
        *("§4.1.2", "Newton-Schulz", "iterations, least", "5", "iterations", "setting"),
        methods.shows("cola-smollm2-muon"),
    ),
    number("§4.1.2", "Newton-Schulz", "iterations, most", "10", "iterations", "setting", methods.OTHER_PAPER),
    number(
        *("§4.2", "Muon against AdamW", "optimizer state saved", "50%", "%", "optimizer_state"),
        methods.memory("cola-smollm2", "cola-smollm2-muon"),
    ),
    number("§4.2", "Muon", "mean GPU utilisation", "75%", "%", "gpu_util", methods.TABLE_3_STUDY),
    number("§4.2", "AdamW", "mean GPU utilisation", "98%", "%", "gpu_util", methods.TABLE_3_STUDY),
    number("§5.1", "Phi-4", "tokens", "102,000", "tokens", "vocab_size", methods.shows("cola"), preset="cola"),
    number(
        *("§5.1", "SmolLM2-135M-Instruct", "tokens", "49,152", "tokens", "vocab_size"),
        methods.shows("cola-smollm2"),
        preset="cola-smollm2",
    ),
    number(
        *("§5.1", "CoLA with Phi-4's tokenizer", "Params.", "150 million", "M", "parameters"),
        methods.params("cola"),
        preset="cola",
    ),
    number(
        *("§5.1", "CoLA with SmolLM2's tokenizer", "Params.", "86.2 million", "M", "parameters"),
        methods.params("cola-smollm2"),
        preset="cola-smollm2",
    ),
    number(
        *("§5.1", "SmolLM2's tokenizer", "parameters saved", "42.5%", "%", "change"),
        methods.params("cola", "cola-smollm2"),
    ),
)
"""In the paper's order."""
