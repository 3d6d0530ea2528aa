"""``colakit flops``: the paper's Table 6 beside a consistent count, or the forward pass of one preset."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

from colakit.analysis.flops import Count, Sizes, Table6, Table6Row, forward_flops, table6
from colakit.cli import options
from colakit.config.load import resolve
from colakit.records import FlopRecord
from colakit.report.tables import add_name_column, add_number_column, new_table, print_json, print_note, print_table
from colakit.units import human_count

PAPER_SIZES = Sizes(n=1024, d=768, r=192, d_ff=2048)
"""Table 6's own d, r and d_ff, at the paper's sequence length."""

_TABLE_6 = "Table 6 (without --preset)"
_OF_PRESET = "One preset's forward pass"

_COUNTED = "Matrix products only, a multiply and an add as two; biases, norms and activations are not counted."
_MIXED = (
    "The printed columns mix two conventions: Original is a forward pass; what CoLA's formulas count is noted here."
)


def _size(name: str, meaning: str) -> Any:  # Any: what typer.Option returns
    return typer.Option(name, min=1, metavar="N", help=meaning, rich_help_panel=_TABLE_6, show_default=False)


def flops(
    d: Annotated[int | None, _size("--d", "Model width; 768 unless given.")] = None,
    r: Annotated[int | None, _size("--r", "Low-rank width; 192 unless given.")] = None,
    d_ff: Annotated[int | None, _size("--d-ff", "Feed-forward width; 2048 unless given.")] = None,
    n: Annotated[int | None, _size("--n", "Tokens of one sequence; 1024 unless given.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            "-p",
            metavar="NAME|FILE.toml",
            help="Count this preset's forward pass instead of Table 6.",
            rich_help_panel=_OF_PRESET,
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=1,
            metavar="B",
            help="Sequences; the preset's own batch size unless given.",
            rich_help_panel=_OF_PRESET,
            show_default=False,
        ),
    ] = None,
    smoke: options.Smoke = False,
    sets: options.Sets = None,
    json: options.Json = False,
) -> None:
    """Count floating point operations: the paper's Table 6, or one preset's forward pass."""
    sizes = {"d": d, "r": r, "d_ff": d_ff, "n": n}
    given = {name: value for name, value in sizes.items() if value is not None}
    if preset is not None:
        if given:
            raise _misplaced(
                (f"--{name.replace('_', '-')}" for name in given), "belongs to Table 6; a preset has sizes of its own"
            )
        _preset_flops(preset, batch_size, smoke, sets or [], json)
        return
    of_preset = {"--batch-size": batch_size is not None, "--smoke": smoke, "--set": bool(sets)}
    if any(of_preset.values()):
        raise _misplaced((name for name, used in of_preset.items() if used), "counts for a preset only; add --preset")
    chosen = Sizes(**{**asdict(PAPER_SIZES), **given})
    if chosen.r >= min(chosen.d, chosen.d_ff):
        rule = (
            f"must be below --d {chosen.d} and --d-ff {chosen.d_ff}: a low-rank layer is narrower than both its sides."
        )
        raise typer.BadParameter(rule, param_hint=f"--r {chosen.r}")
    table = table6(chosen)
    if json:
        print_json(_table6_json(table))
    else:
        _print_table6(table)


def _misplaced(names: Iterable[str], why: str) -> typer.BadParameter:
    return typer.BadParameter(f"{why}.", param_hint=", ".join(names))


def _preset_flops(preset: str, batch_size: int | None, smoke: bool, sets: list[str], json: bool) -> None:
    config = resolve(preset, smoke_run=smoke, sets=sets).config
    count = forward_flops(config.model, batch_size or config.train.batch_size)
    if json:
        print_json(
            {
                "preset": config.preset,
                "batch_size": count.batch_size,
                "seq_len": count.seq_len,
                "components": [FlopRecord(c.component, c.formula, c.flops).to_dict() for c in count.components],
                "total_flops": count.total,
                "causal_attention_product_flops": count.causal_attention_product,
            }
        )
        return
    table = new_table(f"{config.preset}, forward pass")
    add_name_column(table, "component")
    add_number_column(table, "FLOPs")
    add_number_column(table, "share")
    for c in count.components:
        table.add_row(c.component, f"{c.flops:,}", f"{100 * c.flops / count.total:.1f} %")
    table.add_section()
    table.add_row("total", f"{count.total:,}", "")
    print_table(table)
    print_note(f"Batch {count.batch_size} × {count.seq_len} tokens. {_COUNTED}")
    causal = human_count(count.causal_attention_product)
    print_note(f"The attention product counts all pairs of positions; the causal half alone is {causal}.")


def _table6_json(table: Table6) -> dict[str, object]:
    return {
        "table": "Table 6",
        "sizes": asdict(table.sizes),
        "rows": [_row_json(row) for row in table.rows],
        "total": _row_json(table.total),
        "notes": [_MIXED, _COUNTED],
    }


def _row_json(row: Table6Row) -> dict[str, object]:
    def record(count: Count) -> dict[str, object]:
        return FlopRecord(row.component, count.formula, count.flops).to_dict()

    return {
        "component": row.component,
        "original": record(row.original),
        "cola_printed": record(row.cola_printed),
        "printed_change_frac": row.printed_change_frac,
        "cola_forward": record(row.cola_forward),
        "forward_change_frac": row.forward_change_frac,
        "contradiction": row.contradiction,
    }


def _print_table6(table: Table6) -> None:
    sizes = table.sizes
    rendered = new_table(f"Table 6, d={sizes.d} r={sizes.r} d_ff={sizes.d_ff} n={sizes.n}")
    add_name_column(rendered, "component")
    for header in ("Original", "CoLA as printed", "change", "CoLA consistent", "change"):
        add_number_column(rendered, header)
    for row in table.rows:
        _add_table6_row(rendered, row)
    rendered.add_section()
    _add_table6_row(rendered, table.total)
    print_table(rendered)
    print_note(_MIXED)
    for row in table.rows:
        if row.contradiction is not None:
            print_note(f"* {row.cola_printed.formula} ({row.component}): {row.contradiction}.")
    print_note(_COUNTED)


def _add_table6_row(rendered: Table, row: Table6Row) -> None:
    mark = "*" if row.contradiction else ""
    rendered.add_row(
        row.component,
        _count_cell(row.original),
        _count_cell(row.cola_printed, mark),
        f"{100 * row.printed_change_frac:+.1f} %",
        _count_cell(row.cola_forward),
        f"{100 * row.forward_change_frac:+.1f} %",
    )


def _count_cell(count: Count, mark: str = "") -> str:
    return f"{count.formula}{mark} = {human_count(count.flops)}"
