"""How anything leaves on the standard streams: rich tables that never cut a name, plain notes, and one JSON object.

Knows layout alone. What is printed comes as text: values are never read as rich markup.
"""

import io
import sys
from collections.abc import Mapping
from dataclasses import replace

from rich import box
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from colakit.records.base import SCHEMA_VERSION, to_json

_UNLIMITED = 10_000
"""Columns: wider than any table here, so that a measurement at this width is the natural one."""


def stdout_console() -> Console:
    """A console on the standard output: results."""
    return Console(highlight=False, markup=False, emoji=False)


def stderr_console() -> Console:
    """A console on the standard error: messages, progress and logs."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def new_table(title: str) -> Table:
    """An empty table in the house style."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        min_width=len(title),  # else rich would break it
    )


def add_name_column(table: Table, header: str) -> None:
    """Add a column of identifiers: never cut, never wrapped."""
    table.add_column(header, no_wrap=True)


def add_number_column(table: Table, header: str) -> None:
    """Add a column of figures: right-aligned, never cut, never wrapped."""
    table.add_column(header, no_wrap=True, justify="right")


def add_text_column(table: Table, header: str) -> None:
    """Add a column of prose, which wraps between words where the terminal is narrow."""
    table.add_column(header, overflow="fold")


def print_table(table: Table, console: Console | None = None) -> None:
    """Print `table` on `console` (unset: the standard output) with every identifier whole.

    On a terminal the table is as wide as the terminal, or wider where its columns need more: the terminal then breaks
    long lines, but no name is shortened. Elsewhere (a pipe, a file) the table has its natural width and nothing wraps.
    Columns with `no_wrap` hold the identifiers.
    """
    console = console or stdout_console()
    unlimited = replace(console.options, max_width=_UNLIMITED)
    for column in table.columns:
        # rich takes the longest word as the minimum, for identifiers too, and may give a column less
        content = _measure_content(console, unlimited, column, table.show_footer)
        column.min_width = content.maximum if column.no_wrap else content.minimum
    needed = Measurement.get(console, unlimited, table)
    console.width = max(console.width, needed.minimum) if console.is_terminal else needed.maximum
    console.print(table)


def _measure_content(console: Console, options: ConsoleOptions, column: Column, show_footer: bool) -> Measurement:
    cells = [column.header, *column.cells, *([column.footer] if show_footer else [])]
    measured = [Measurement.get(console, options, cell) for cell in cells]
    return Measurement(max(m.minimum for m in measured), max(m.maximum for m in measured))


def print_note(note: str, console: Console | None = None) -> None:
    """Print a line of prose, wrapped between words on a terminal and whole elsewhere."""
    console = console or stdout_console()
    console.print(Text(note), soft_wrap=not console.is_terminal)


def print_json(values: Mapping[str, object]) -> None:
    """Write `values` with the ``schema`` version as one line of JSON: the only thing on the standard output.

    Always UTF-8, as JSON is, whatever the locale; NaN and infinities become null.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    sys.stdout.write(to_json({"schema": SCHEMA_VERSION, **values}) + "\n")
    sys.stdout.flush()  # so that a closed pipe is noticed here, not while the interpreter shuts down
