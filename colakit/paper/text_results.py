"""Figures of the running text, §5.4 to §5.9: speed, memory, training dynamics, several GPUs."""

from colakit.paper import methods
from colakit.paper.claim import AnyClaim, Claim, Quantity, number

_NATS = "nats per token"
_ADAMW_V20 = "AdamW (version 20)"
_ADAMW_V10, _MUON_V11 = "AdamW (version 10)", "Muon (version 11)"
_DDP = "CoLA_FAN, progressive dropout"
_PRESET = "cola-fan-dropout"
_DDP_RUN = methods.train_ddp(_PRESET)


def _v20(
    column: str, printed: str, unit: str, quantity: Quantity, *, value: float | None = None, about: bool = False
) -> Claim:
    return number("§5.7", _ADAMW_V20, column, printed, unit, quantity, methods.UNNAMED_RUN, value=value, about=about)


def _training(column: str, printed: str, unit: str, quantity: Quantity, *, about: bool = False) -> Claim:
    return number("§5.9", _DDP, column, printed, unit, quantity, _DDP_RUN, preset=_PRESET, about=about)


TEXT_RESULTS: tuple[AnyClaim, ...] = (
    number("§5.4", "CoLA + SmolLM2", "examples timed", "100,000", "examples", "examples", methods.BUDGET),
    number(
        *("§5.4", "CoLA + SmolLM2", "time for them", "15", "min", "duration", methods.TOTAL_TIME),
        preset="cola-smollm2",
        about=True,
    ),
    number(
        *("§5.4", "Original", "time for them", "33", "min", "duration", methods.TOTAL_TIME),
        preset="original",
    ),
    number(
        *("§5.4", "CoLA + SmolLM2 against Original", "speed", "2.2×", "×", "ratio"),
        methods.bench_both("original", "cola-smollm2"),
    ),
    number(
        *("§5.4", "Muon against AdamW", "it/s lost", "22%", "%", "change"),
        methods.bench_both("cola-smollm2", "cola-smollm2-muon"),
        about=True,
    ),
    number(
        *("§5.5", "CoLA-M", "Max batch", "64", "sequences", "largest_batch"),
        methods.max_batch("cola-m"),
        preset="cola-m",
    ),
    number(
        *("§5.6", "CoLA at r = d/4", "operations saved", "50%", "%", "change"), methods.flops(d=768, r=192), about=True
    ),
    _v20("training time", "6", "h", "duration"),
    _v20("examples", "1 million", "examples", "examples", value=1e6),
    _v20("batch size", "16", "sequences", "batch_size"),
    _v20("training loss, start", "4.6", _NATS, "train_loss"),
    _v20("training loss, end", "4.34", _NATS, "train_loss"),
    _v20("training loss reduction", "5.6%", "%", "change"),
    _v20("validation loss", "4.36", _NATS, "val_loss"),
    _v20("steps until validation is stable", "70,000", "steps", "steps", about=True),
    _v20("steps in Figure 6", "130K", "steps", "steps", value=130e3),
    _v20("validation gap", "0.02", _NATS, "loss_gap", about=True),
    _v20("mean GPU utilisation", "98%", "%", "gpu_util"),
    _v20("tokens/s", "6,000", "tokens/s", "tokens_per_s", about=True),
    number("§5.7", _ADAMW_V10, "mean GPU utilisation", "98%", "%", "gpu_util", methods.TABLE_3_STUDY),
    number("§5.7", _MUON_V11, "mean GPU utilisation", "75%", "%", "gpu_util", methods.TABLE_3_STUDY),
    number("§5.7", _ADAMW_V10, "loss reduction, Figure 8", "13%", "%", "change", methods.UNNAMED_RUN),
    number("§5.7", _MUON_V11, "loss reduction, Figure 8", "36%", "%", "change", methods.UNNAMED_RUN),
    number("§5.7", _ADAMW_V10, "training loss reduction, Figure 9", "19%", "%", "change", methods.UNNAMED_RUN),
    number("§5.7", _MUON_V11, "training loss reduction, Figure 9", "37%", "%", "change", methods.UNNAMED_RUN),
    number("§5.7", _ADAMW_V10, "final validation loss", "4.50", _NATS, "val_loss", methods.UNNAMED_RUN),
    number("§5.7", _MUON_V11, "final validation loss", "4.46", _NATS, "val_loss", methods.UNNAMED_RUN),
    number(
        *("§5.7", "FANformer against CoLA+SmolLM2", "tokens/s lost", "6.4%", "%", "change"),
        methods.bench_both("cola-smollm2", "cola-fan"),
        about=True,
    ),
    number(
        *("§5.8", "Muon under ZeRO-1", "data sent, more than AdamW", "25%", "%", "communication"),
        methods.TRAFFIC,
        about=True,
    ),
    number(
        *("§5.8", "Muon against AdamW", "training loss reduction", "almost double", "×", "ratio", methods.DERIVED),
        value=2.0,
        about=True,
    ),
    number("§5.9", _DDP, "examples", "2.5 million", "examples", "examples", methods.BUDGET, value=2.5e6),
    number("§5.9", _DDP, "GPUs", "2", "GPUs", "gpus", methods.BUDGET),
    number("§5.9", _DDP, "training time", "4", "h", "duration", methods.TOTAL_TIME, about=True),
    number("§5.9", _DDP, "batch size per GPU", "16", "sequences", "batch_size", methods.shows(_PRESET)),
    number(
        *("§5.9", _DDP, "it/s on one GPU", "5.94", "it/s", "it_per_s", methods.bench(_PRESET)),
        preset=_PRESET,
    ),
    _training("it/s per GPU on two", "5.24", "it/s", "it_per_s"),
    number(
        *("§5.9", _DDP, "throughput of two GPUs", "double", "×", "ratio", _DDP_RUN),
        preset=_PRESET,
        value=2.0,
        about=True,
    ),
    _training("steps to plateau", "20,000", "steps", "steps"),
    _training("training accuracy plateau", "0.21", "", "accuracy", about=True),
    number("§5.9", _DDP, "training loss, start", "5.125", _NATS, "train_loss", _DDP_RUN),
    _training("training loss, end", "4.2916", _NATS, "train_loss"),
    _training("training loss reduction", "16%", "%", "change"),
    _training("training loss, unsmoothed plateau", "4.3", _NATS, "train_loss", about=True),
    number("§5.9", _DDP, "validation accuracy, start", "0.2238", "", "accuracy", _DDP_RUN),
    _training("validation accuracy, end", "0.226", "", "accuracy"),
    _training("validation accuracy gain", "1%", "%", "change"),
    number("§5.9", _DDP, "validation loss, start", "4.2628", _NATS, "val_loss", _DDP_RUN),
    _training("validation loss, end", "4.2538", _NATS, "val_loss"),
    _training("validation gap", "0.04", _NATS, "loss_gap", about=True),
    number(
        *("§5.9", "base model", "validation gap", "0.07", _NATS, "loss_gap", methods.UNNAMED_RUN),
        about=True,
    ),
    _training("it/s per GPU without dropout", "5.68", "it/s", "it_per_s", about=True),
    _training("it/s per GPU with dropout", "5.24", "it/s", "it_per_s", about=True),
)
"""In the paper's order."""
