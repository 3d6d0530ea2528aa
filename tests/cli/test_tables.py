"""Tables never cut a name, whatever the width; JSON is strict."""

import io
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from colakit.config.presets import preset_names
from colakit.records.base import SCHEMA_VERSION
from colakit.report.tables import (
    add_name_column,
    add_number_column,
    add_text_column,
    new_table,
    print_json,
    print_note,
    print_table,
)

Run = Callable[..., Any]  # Any: conftest's Outcome, which cannot be imported from here

NAME = "a-name of two-words-and-more"
PROSE = "several words that may be wrapped where the terminal is narrow"


def example() -> Table:
    table = new_table("Example")
    add_name_column(table, "name")
    add_text_column(table, "prose")
    add_number_column(table, "figure in words")
    table.add_row(NAME, PROSE, "123,456,789")
    table.add_row("[about]", "[bold]x[/]", "1")
    return table


def printed(width: int, terminal: bool) -> list[str]:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, markup=False, highlight=False
    )
    print_table(example(), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    return [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()]


def test_a_title_is_whole_above_a_narrow_table() -> None:
    table = new_table("A title that is wider than its table")
    add_number_column(table, "n")
    table.add_row("1")
    console = Console(file=io.StringIO(), width=20)
    print_table(table, console)
    assert console.file.getvalue().splitlines()[0].strip() == table.title  # type: ignore[attr-defined]  # a StringIO


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [1, 20, 40, 60, 80, 300])
def test_names_and_figures_are_whole_at_any_width(width: int, terminal: bool) -> None:
    lines = printed(width, terminal)
    (row,) = [line for line in lines if NAME in line]
    assert "123,456,789" in row
    (header,) = [line for line in lines if "figure in words" in line]
    assert "name" in header
    assert any(line.split()[:2] == ["[about]", "[bold]x[/]"] for line in lines)
    assert not any("…" in line for line in lines)


def test_a_narrow_terminal_wraps_prose_between_words() -> None:
    words = [word for line in printed(40, terminal=True) for word in line.split()]
    assert all(word in words for word in PROSE.split())
    assert not any(PROSE in line for line in printed(40, terminal=True))


def test_a_wide_terminal_wraps_nothing() -> None:
    assert any(NAME in line and PROSE in line for line in printed(300, terminal=True))


@pytest.mark.parametrize("width", [1, 40, 80])
def test_a_file_gets_whole_rows(width: int) -> None:
    assert any(NAME in line and PROSE in line and "123,456,789" in line for line in printed(width, terminal=False))


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("args", [["presets"], ["params"]])
def test_preset_names_are_whole_at_40_columns(
    colakit: Run, monkeypatch: pytest.MonkeyPatch, args: list[str], terminal: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    text = re.sub(r"\x1b\[[\d;]*m", "", colakit(*args).out)
    first_words = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert [word for word in first_words if word in preset_names()] == preset_names()


@pytest.mark.parametrize(("terminal", "lines"), [(True, 4), (False, 1)])
def test_a_note_wraps_on_a_terminal_alone(terminal: bool, lines: int) -> None:
    console = Console(file=io.StringIO(), width=20, force_terminal=terminal, color_system=None)
    print_note(PROSE, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert len(text.splitlines()) == lines
    assert text.split() == PROSE.split()


def test_json_is_strict(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"nan": float("nan"), "inf": [float("-inf")], "text": "[about] §6 – a\nb", "long": "x" * 500})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out, parse_constant=pytest.fail) == {
        "schema": SCHEMA_VERSION,
        "nan": None,
        "inf": [None],
        "text": "[about] §6 – a\nb",
        "long": "x" * 500,
    }
