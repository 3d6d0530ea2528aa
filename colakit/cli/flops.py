"""``colakit flops``: the paper's Table 6 beside a consistent count, or one optimizer step of presets."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from colakit.analysis.flops import step_flops
from colakit.analysis.table6 import Sizes, table6
from colakit.cli import options
from colakit.cli.shared import MEASURED_BY_BENCH, refuse_idle
from colakit.config.load import resolve
from colakit.records.analysis import FlopRecord, Table6Record
from colakit.report.figures import check_figure, stacked_bars
from colakit.report.flops import growth_table, step_notes, step_table, steps_table, table6_notes, table6_table
from colakit.report.tables import print_json, print_note, print_table

PAPER_SIZES = Sizes(n=1024, d=768, r=192, d_ff=2048)
"""Table 6's own d, r and d_ff, at the paper's sequence length."""

_TABLE_6 = "Table 6 (without --preset)"
_OF_PRESET = "An optimizer step of a preset"
_MEGA = 1e6


def _size(name: str, meaning: str, panel: str) -> Any:  # Any: what typer.Option returns
    return typer.Option(
        name, min=1, max=options.MAX_SIZE, metavar="N", help=meaning, rich_help_panel=panel, show_default=False
    )


def flops(
    d: Annotated[int | None, _size("--d", "Model width; 768 unless given.", _TABLE_6)] = None,
    r: Annotated[int | None, _size("--r", "Low-rank width; d / 4 unless given.", _TABLE_6)] = None,
    d_ff: Annotated[int | None, _size("--d-ff", "Feed-forward width; 8 d / 3 unless given.", _TABLE_6)] = None,
    n: Annotated[int | None, _size("--n", "Tokens of one sequence; 1024 unless given.", _TABLE_6)] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(
            "--preset",
            "-p",
            metavar="NAME|FILE.toml",
            help="Count an optimizer step of this preset instead of Table 6; may be repeated.",
            rich_help_panel=_OF_PRESET,
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, _size("--batch-size", "Sequences of a step; the preset's own unless given.", _OF_PRESET)
    ] = None,
    seq_len: Annotated[
        int | None, _size("--seq-len", "Tokens of a sequence; the preset's own unless given.", _OF_PRESET)
    ] = None,
    smoke: options.Smoke = False,
    sets: options.Sets = None,
    plot: options.Plot = None,
    json: options.Json = False,
) -> None:
    """Count floating point operations: the paper's Table 6, or one optimizer step of presets."""
    sizes = {"d": d, "r": r, "d_ff": d_ff, "n": n}
    given = {name: value for name, value in sizes.items() if value is not None}
    of_preset = {
        "--batch-size": batch_size is not None,
        "--seq-len": seq_len is not None,
        "--smoke": smoke,
        "--set": bool(sets),
    }
    if preset and given:
        names = (f"--{name.replace('_', '-')}" for name in given)
        raise _misplaced(names, "belongs to Table 6; a preset has sizes of its own")
    if not preset and any(of_preset.values()):
        raise _misplaced((name for name, used in of_preset.items() if used), "counts for a preset only; add --preset")
    if plot is not None:
        check_figure(plot)
    if preset:
        shape = {"train.batch_size": batch_size, "model.seq_len": seq_len}
        refuse_idle(sets or [], MEASURED_BY_BENCH)
        sets = [*(sets or []), *(f"{field}={size}" for field, size in shape.items() if size is not None)]
        _presets(preset, smoke=smoke, sets=sets, plot=plot, json=json)
    else:
        width = d or PAPER_SIZES.d
        others = {"n": PAPER_SIZES.n, "r": max(1, width // 4), "d_ff": 8 * width // 3}
        _table6(Sizes(**{"d": width, **others, **given}), r_is_default=r is None, plot=plot, json=json)


def _misplaced(names: Iterable[str], why: str) -> typer.BadParameter:
    return typer.BadParameter(f"{why}.", param_hint=", ".join(names))


def _table6(sizes: Sizes, *, r_is_default: bool, plot: Path | None, json: bool) -> None:
    if sizes.r >= min(sizes.d, sizes.d_ff):
        rule = f"must be below --d {sizes.d} and --d-ff {sizes.d_ff}: a low-rank layer is narrower than both its sides."
        raise typer.BadParameter(rule, param_hint=f"--r {sizes.r}{' (d / 4)' if r_is_default else ''}")
    record = table6(sizes)
    if plot is not None:
        stacked_bars(plot, "Table 6, forward pass of one layer", "GFLOP", _table6_bars(record))
    if json:
        print_json(record.to_dict())
        return
    print_table(table6_table(record))
    for note in table6_notes(record):
        print_note(note)


def _table6_bars(record: Table6Record) -> dict[str, dict[str, float]]:
    giga = 1e9
    return {
        "Original": {c.name: c.dense_forward / giga for c in record.components},
        "CoLA as printed": {c.name: c.paper_cola / giga for c in record.components},
        "CoLA": {c.name: c.cola_forward / giga for c in record.components},
    }


def _presets(names: list[str], *, smoke: bool, sets: list[str], plot: Path | None, json: bool) -> None:
    names = list(dict.fromkeys(names))
    records = [step_flops(resolve(name, smoke_run=smoke, sets=sets).config) for name in names]
    if plot is not None:
        bars = dict(zip(names, map(_step_bars, records), strict=True))
        stacked_bars(plot, "A token in training", "MFLOP", bars)  # steps differ in their batches
    if json:
        values = [record.to_dict() for record in records]
        print_json(values[0] if len(values) == 1 else {"presets": values})
        return
    if len(records) > 1:
        print_table(steps_table(records))
    else:
        print_table(step_table(records[0]))
        print_table(growth_table(records[0]))
    for note in step_notes(records):
        print_note(note)


def _step_bars(record: FlopRecord) -> dict[str, float]:
    parts = {c.name: c.training for c in record.components}
    parts |= {"recompute": record.recompute, "Newton–Schulz": record.newton_schulz}
    return {name: flops / record.tokens / _MEGA for name, flops in parts.items()}
