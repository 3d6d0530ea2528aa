"""The tables of ``colakit flops``: Table 6 three ways, one optimizer step by component, and its growth."""

import re
from collections.abc import Sequence

from rich.table import Table

from colakit.analysis.table6 import TRAINING
from colakit.records.analysis import FlopRecord, Table6Component, Table6Record
from colakit.report.params import FAN_NOTE
from colakit.report.tables import add_name_column, add_number_column, new_table
from colakit.units import human_count

_COUNTED = (
    "Matrix products only, a multiply and an add as two. Not counted, since PyTorch's counter cannot see it: "
    "elementwise work, norms, softmax, rotary positions, the embedding's lookup, AdamW's update."
)


def table6_table(record: Table6Record) -> Table:
    """Table 6: as printed, the forward pass, forward with backward; CoLA over dense beside each."""
    table = new_table(f"Table 6, d={record.d} r={record.r} d_ff={record.d_ff} n={record.n}")
    add_name_column(table, "component")
    printed, forward, both = "as printed", "forward", "forward + backward"
    for header in (
        f"Original\n{printed}",
        f"CoLA\n{printed}",
        "ratio\n",
        f"CoLA\n{forward}",
        "CoLA /\ndense",
        f"dense\n{both}",
        f"CoLA\n{both}",
    ):
        add_number_column(table, header)
    for component in record.components:
        table.add_row(*_table6_row(component))
    table.add_section()
    table.add_row(*_table6_row(record.totals))
    return table


def _table6_row(c: Table6Component) -> tuple[str, ...]:
    def cell(formula: str, flops: int) -> str:
        return human_count(flops) if formula == "sum" else f"{formula} = {human_count(flops)}"

    return (
        c.name,
        cell(c.dense_formula, c.paper_dense),
        cell(c.paper_cola_formula, c.paper_cola) + ("" if c.paper_cola == c.cola_forward else "*"),
        f"{c.paper_ratio:.3f}",
        cell(c.cola_formula, c.cola_forward),
        f"{c.ratio:.3f}",
        cell(_in_training(c.dense_formula), c.dense_training),
        cell(_in_training(c.cola_formula), c.cola_training),
    )


def _in_training(formula: str) -> str:
    """6nd² → 18nd²: forward and backward are three times the forward pass."""
    return re.sub(r"^\d+", lambda factor: str(TRAINING * int(factor.group())), formula)


def table6_notes(record: Table6Record) -> list[str]:
    """What the printed CoLA column counts, found by dividing it by the forward pass."""
    excess = {c: c.paper_cola / c.cola_forward for c in record.components if c.paper_cola != c.cola_forward}
    return [
        "Original as printed is the dense forward pass.",
        *(f"* {c.paper_cola_formula} ({c.name}) is {times:g} × its forward pass." for c, times in excess.items()),
        _COUNTED,
    ]


def step_table(record: FlopRecord) -> Table:
    """One optimizer step by component: forward, forward with backward, and per token."""
    table = new_table(f"{record.preset}, one optimizer step of {record.batch_size} × {record.seq_len} tokens")
    add_name_column(table, "FLOPs")
    for header in ("forward", "forward + backward", "per token", "share", "recompute"):
        add_number_column(table, header)
    for c in record.components:
        share = f"{100 * c.training / record.model_flops:.1f} %"
        again = f"{c.recompute:,}" if c.recompute else "–"
        table.add_row(c.name, f"{c.forward:,}", f"{c.training:,}", f"{c.training // record.tokens:,}", share, again)
    table.add_section()
    causal = record.causal_attention_product
    rows = {
        "model FLOPs": (f"{record.forward:,}", record.model_flops),
        "causal attention_product": (f"{causal:,}", TRAINING * causal),
        "model FLOPs, causal": ("", record.causal_model_flops),
        "recompute": ("", record.recompute),
        "Newton–Schulz": ("", record.newton_schulz),
        "hardware FLOPs": ("", record.hardware_flops),
    }
    for name, (forward, flops) in rows.items():
        share = f"{100 * flops / record.model_flops:.1f} %"
        table.add_row(name, forward, f"{flops:,}", f"{flops // record.tokens:,}", share, "")
    return table


def steps_table(records: Sequence[FlopRecord]) -> Table:
    """Several presets, one a row: what a step costs, in GFLOP of forward and backward."""
    table = new_table("One optimizer step, GFLOP")
    add_name_column(table, "preset")
    names = list(dict.fromkeys(c.name for record in records for c in record.components))
    for header in ("batch", *names, "model", "recompute", "Newton–Schulz", "hardware", "per token"):
        add_number_column(table, header)
    for record in records:
        parts = {c.name: c.training for c in record.components}
        total = (record.model_flops, record.recompute, record.newton_schulz, record.hardware_flops)
        table.add_row(
            record.preset,
            f"{record.batch_size} × {record.seq_len}",
            *(f"{parts[name] / 1e9:,.0f}" if name in parts else "–" for name in names),
            *(f"{n / 1e9:,.0f}" if n else "–" for n in total),
            human_count(record.model_flops_per_token),
        )
    return table


def growth_table(record: FlopRecord) -> Table:
    """What a token costs as the sequence grows."""
    table = new_table("Growth with the sequence length")
    add_number_column(table, "seq_len")
    add_number_column(table, "FLOPs per token")
    add_number_column(table, "attention_product")
    for at in record.by_seq_len:
        share = f"{100 * at.attention_product_frac:.1f} %"
        table.add_row(f"{at.seq_len:,}", f"{at.training_flops_per_token:,}", share)
    return table


def _exa(flops: int) -> str:
    return f"{flops / 1e18:.3g} × 10¹⁸"


def step_notes(records: Sequence[FlopRecord]) -> list[str]:
    """What is counted how, and where attention overtakes."""
    notes = [
        f"{r.preset}: a run of {r.max_steps:,} such steps is {_exa(r.max_steps * r.hardware_flops)} hardware FLOPs. "
        f"From {r.attention_overtakes_at:,} tokens a sequence, the attention product costs more than all the rest."
        for r in records
    ]
    return [
        *notes,
        FAN_NOTE,
        "The attention product counts all n² pairs, in its row and in the model FLOPs; the causal lines count the "
        "lower triangle alone. Model FLOPs are what MFU takes; hardware FLOPs add recompute (CoLA-M) "
        "and Newton–Schulz, once a step, in the form of the device (a GPU's, unless train.device=cpu). A fused "
        "attention kernel's own recompute is not in them.",
        _COUNTED,
    ]
