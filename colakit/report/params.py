"""The tables of ``colakit params``: counts by component, routing, and the memory ledger."""

import re
from collections.abc import Iterable

from rich.table import Table

from colakit.records.analysis import MemoryRecord, ParamRecord, RoutedParam
from colakit.report.tables import add_name_column, add_number_column, new_table
from colakit.units import gib

_MILLION = 1e6

FAN_NOTE = "CoLA_FAN's matrices are part of q, k and v; the component fan is the full-rank layer of cola-fan-atf."


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
    first = records[0]
    columns = ("total", f"vs {first.preset}", "non-emb.", "paper", "deviation")
    for header in (*(c.name for c in first.components), *columns):
        add_number_column(table, header)
    for record in records:
        cells = [f"{c.params / _MILLION:.2f}" if c.params else "–" for c in record.components]
        total, non_embedding = (f"{n / _MILLION:.2f}" for n in (record.total, record.non_embedding))
        change = "–" if record is first else f"{100 * (record.total / first.total - 1):+.1f} %"
        table.add_row(record.preset, *cells, total, change, non_embedding, _printed(record), _deviation(record))
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
    return [*notes, FAN_NOTE]


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

    def row(name: str, plain: int, cola_m: int | None, *, at_peak: tuple[bool, bool] = (True, True)) -> None:
        cells = [("n/a" if n is None else f"{gib(n):,.3f}") if n != 0 else "–" for n in (plain, cola_m)]
        table.add_row(
            name, *(c if held or c in ("n/a", "–") else f"({c})" for c, held in zip(cells, at_peak, strict=True))
        )

    def both(name: str, n_bytes: int, *, at_peak: tuple[bool, bool] = (True, True)) -> None:
        row(name, n_bytes, None if m.cola_m_total is None else n_bytes, at_peak=at_peak)

    for name, n_bytes in {
        "weights": m.weights,
        "gradients": m.gradients,
        "Muon's state": m.muon_state,
        "AdamW's state": m.adamw_state,
    }.items():
        if n_bytes:
            both(name, n_bytes)
    table.add_section()
    row("activations", m.plain_activations, m.cola_m_activations)
    for stage in m.activations:
        row(f"  {stage.name}", stage.plain_bytes, stage.cola_m_bytes)
    table.add_section()
    peak = m.cola_m_peak
    loss = (True, peak == "loss")
    if m.weight_copies:
        both(f"autocast's weights in {m.dtype}", m.weight_copies, at_peak=loss)
    if m.chunked_logits < m.logits:
        both("logits at once", m.logits, at_peak=(False, False))
    both("logits of one chunk", m.chunked_logits, at_peak=loss)
    both("what the loss needs besides", m.loss_workspace, at_peak=loss)
    both("gradients of the loss", m.loss_gradients, at_peak=loss)
    if m.recomputed_block is not None:
        row("one block computed again", 0, m.recomputed_block, at_peak=(True, peak == "block"))
    table.add_section()
    row("total", m.plain_total, m.cola_m_total)
    return table, list(_memory_notes(m))


_PEAKS = {"loss": "while the loss is computed", "block": "where a block is computed again"}


def _memory_notes(m: MemoryRecord) -> Iterable[str]:
    yield (
        f"Products in {m.dtype}; weights, gradients, optimizer state and residual stream in float32. train.device and "
        "train.dtype choose; where they are auto, a GPU is assumed that multiplies bfloat16 natively."
    )
    if m.cola_m_peak is None:
        yield "CoLA-M needs low-rank layers. In brackets: not in the total."
    else:
        yield (
            f"This preset trains {'with' if m.is_cola_m else 'without'} CoLA-M, whose peak is "
            f"{_PEAKS[m.cola_m_peak]}. In brackets: not held at the peak, so not in the total."
        )
    yield (
        "What eager PyTorch holds, with its own attention; flash-attn's is counted as the same. A kernel's own "
        "workspace, the allocator's rounding and the CUDA context come on top."
    )


def _printed(record: ParamRecord) -> str:
    if record.claim is None:
        return "n/a"
    return f"{record.claim.value / _MILLION:g}M{'*' if record.claim.contradiction else ''}"


def _deviation(record: ParamRecord) -> str:
    return "n/a" if record.claim is None else f"{100 * record.claim.deviation_frac:+.1f} %"
