"""The tables of ``colakit params``: counts by component, routing, and the memory ledger."""

import re
from collections.abc import Iterable

from rich.table import Table

from colakit.records import MemoryRecord, ParamRecord, RoutedParam
from colakit.report.tables import add_name_column, add_number_column, new_table
from colakit.units import gib

_MILLION = 1e6


def params_table(record: ParamRecord) -> Table:
    """One model: parameters and share of every component."""
    table = new_table(f"Parameters of {record.preset}")
    add_name_column(table, "component")
    add_number_column(table, "parameters")
    add_number_column(table, "share")
    for c in record.components:
        table.add_row(c.name, f"{c.params:,}", f"{100 * c.share_frac:.1f} %" if c.params else "–")
    table.add_section()
    table.add_row("total", f"{record.total:,}", "")
    table.add_row("non-embedding", f"{record.non_embedding:,}", "")
    table.add_row("paper's total", _printed(record), _deviation(record))
    return table


def summary_table(records: list[ParamRecord]) -> Table:
    """Several models, one a row: millions of parameters of every component."""
    table = new_table("Parameters, in millions")
    add_name_column(table, "preset")
    for header in (*(c.name for c in records[0].components), "total", "non-emb.", "paper", "deviation"):
        add_number_column(table, header)
    for record in records:
        cells = [f"{c.params / _MILLION:.2f}" if c.params else "–" for c in record.components]
        totals = [f"{n / _MILLION:.2f}" for n in (record.total, record.non_embedding)]
        table.add_row(record.preset, *cells, *totals, _printed(record), _deviation(record))
    return table


def params_notes(records: list[ParamRecord]) -> list[str]:
    """Why a printed figure cannot be met, and why there is none."""
    notes = [
        f"* {record.preset}: the printed figure cannot be met: {record.claim.contradiction}."
        for record in records
        if record.claim is not None and record.claim.contradiction
    ]
    reasons: dict[str, list[str]] = {}
    for record in records:
        if record.reason:
            reasons.setdefault(record.reason, []).append(record.preset)
    notes += [f"n/a for {', '.join(names)}: {why}." for why, names in reasons.items()]
    return [*notes, "The component fan is ATF's full-rank layer; CoLA_FAN's matrices are those of q, k and v."]


def routing_table(preset: str, routing: Iterable[RoutedParam]) -> Table:
    """Who updates what; the same parameter of several blocks is one row, its block number a star."""
    rows: dict[tuple[str, RoutedParam], int] = {}
    for p in routing:
        name = re.sub(r"^blocks\.\d+\.", "blocks.*.", p.name)
        alike = RoutedParam(name, p.role, p.shape, p.matrices, p.optimizer, p.weight_decay)
        rows[name, alike] = rows.get((name, alike), 0) + 1
    table = new_table(f"Optimizers of {preset}")
    for header in ("parameter", "role", "optimizer", "decay"):
        add_name_column(table, header)
    for header in ("shape", "matrices", "times"):
        add_number_column(table, header)
    for (name, p), times in rows.items():
        decay = "yes" if p.weight_decay else "no"
        shape = "×".join(str(n) for n in p.shape)
        table.add_row(name, p.role, p.optimizer, decay, shape, str(p.matrices or "–"), str(times))
    return table


def memory_table(preset: str, m: MemoryRecord) -> tuple[Table, list[str]]:
    """The ledger, with and without CoLA-M, and what it assumes."""
    table = new_table(f"Memory of {preset}: {m.batch_size} × {m.seq_len} tokens, {m.dtype}, {m.device.upper()}")
    add_name_column(table, "GiB")
    add_number_column(table, "plain")
    add_number_column(table, "CoLA-M")

    def row(name: str, plain: int, cola_m: int | None) -> None:
        table.add_row(name, *("n/a" if n is None else f"{gib(n):,.3f}" if n else "–" for n in (plain, cola_m)))

    has_cola_m = m.cola_m_activations is not None
    fixed = {
        "weights": m.weights,
        "gradients": m.gradients,
        "Muon's state": m.muon_state,
        "AdamW's state": m.adamw_state,
    }
    for name, n_bytes in fixed.items():
        if n_bytes:
            row(name, n_bytes, n_bytes if has_cola_m else None)
    if m.weight_copies:
        row(f"weights in {m.dtype}", m.weight_copies, 0 if has_cola_m else None)
    table.add_section()
    for stage in m.activations:
        row(f"activations: {stage.name}", stage.plain_bytes, stage.cola_m_bytes)
    row("activations", m.plain_activations, m.cola_m_activations)
    if m.recomputed_block is not None:
        row("one block computed again", 0, m.recomputed_block)
    table.add_section()
    row("logits at once", m.logits, m.logits if has_cola_m else None)
    row("logits in chunks", m.chunked_logits, m.chunked_logits if has_cola_m else None)
    row("gradients of the loss", m.loss_gradients, m.loss_gradients if has_cola_m else None)
    table.add_section()
    row("total", m.plain_total, m.cola_m_total)
    return table, list(_memory_notes(m))


def _memory_notes(m: MemoryRecord) -> Iterable[str]:
    yield (
        f"Products in {m.dtype}; weights, gradients, optimizer state and residual stream in float32. train.device and "
        "train.dtype choose; auto counts as a GPU that multiplies bfloat16."
    )
    yield (
        f"The loss of this batch is computed {'in chunks' if m.is_chunked else 'at once'}, and the total counts it so. "
        f"This preset trains {'with' if m.is_cola_m else 'without'} CoLA-M, whose total has the logits with their "
        "gradients or the block computed again, whichever is more: they are not held at the same time."
    )
    yield (
        "What eager PyTorch holds, with its own attention (model.attention=sdpa). A kernel's own workspace, the "
        "allocator's rounding and the CUDA context come on top."
    )


def _printed(record: ParamRecord) -> str:
    if record.claim is None:
        return "n/a"
    return f"{record.claim.value / _MILLION:g}M{'*' if record.claim.contradiction else ''}"


def _deviation(record: ParamRecord) -> str:
    return "n/a" if record.claim is None else f"{100 * record.claim.deviation_frac:+.1f} %"
