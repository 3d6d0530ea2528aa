"""What `colakit paper` prints: the paper's tables, what contradicts them, and the commands that measure them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from colakit.analysis.contradictions import contradictions_of, find_contradictions
from colakit.cli.paper import _letter
from colakit.paper.claim import CAPTION
from colakit.paper.claims import CLAIMS, PARTS
from colakit.report import tables

Run = Callable[..., Any]  # Any: conftest's Outcome, which cannot be imported from here

NAMES = [part.name for part in PARTS]


def one_object(text: str) -> dict[str, Any]:  # Any: JSON values
    """The only JSON object of `text`, which is one line of strict, plain JSON."""
    assert text.count("\n") == 1
    assert "\x1b" not in text
    value = json.loads(text, parse_constant=pytest.fail)
    assert isinstance(value, dict)
    return value


def rows(out: str) -> dict[str, list[str]]:
    """First cell → further cells of every line, cells being two or more blanks apart."""
    lines = [[cell for cell in line.strip().split("  ") if cell] for line in out.splitlines()]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines if cells}


def test_the_seven_tables_and_the_text() -> None:
    assert [*(f"table{n}" for n in range(1, 8)), "text"] == NAMES


def test_overview_counts_every_part_and_lists_every_contradiction(colakit: Run) -> None:
    outcome = colakit("paper")
    assert (outcome.code, outcome.err) == (0, "")
    counted = rows(outcome.out)
    for part in PARTS:
        claims = [c for c in CLAIMS if part.holds(c)]
        measured, marked = sum(c.command is not None for c in claims), sum(bool(contradictions_of(c)) for c in claims)
        assert counted[part.name] == [part.caption, str(len(claims)), str(measured), str(marked)]
    assert f"{len(find_contradictions())} contradictions" in outcome.out
    for found in find_contradictions():
        assert f"{', '.join(found.places)} " in outcome.out
        assert found.summary in outcome.out


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_part_prints_every_figure_its_mark_and_its_footnotes(colakit: Run, part: Any) -> None:  # Any: a Part
    outcome = colakit("paper", part.name)
    assert (outcome.code, outcome.err) == (0, "")
    claims = [c for c in CLAIMS if part.holds(c)]
    found = [f for f in find_contradictions() if any(c.reference in f.claims for c in claims)]
    letters = {f.identifier: _letter(i) for i, f in enumerate(found)}
    for f in found:
        assert f"\n*{letters[f.identifier]} {f.sentence}.\n" in outcome.out
    for c in claims:
        marks = ",".join(letters[f.identifier] for f in contradictions_of(c))
        cell = f"{c.printed}*{marks}" if marks else c.printed
        if part.name == "text":
            lines = [line for line in outcome.out.splitlines() if line.startswith(f" {c.table} ") and c.column in line]
            assert any(f" {cell} " in line and c.row in line for line in lines), c.reference
        elif c.row == CAPTION:
            assert f"{c.column} {cell}" in outcome.out
        else:
            assert cell in rows(outcome.out)[c.row], c.reference


def test_table_4_as_printed(colakit: Run) -> None:
    out = colakit("paper", "table4").out
    cells = rows(out)
    assert out.startswith("Table 4: efficiency and quality on an RTX 4090")
    assert cells["Original"] == ["236M", "–", "3.00", "14.0", "4.50*a,e"]
    assert cells["CoLA"] == ["156M*b,c", "33.9%", "5.00", "12.0", "4.52*a,e"]
    assert cells["colakit params --preset PRESET"] == ["Params."]
    assert cells["colakit bench --preset PRESET --batch-sizes 16"] == ["it/s, VRAM (GB)"]
    assert "PRESET is the row's or column's own: original, cola, cola-smollm2" in out
    assert cells["colakit train --preset PRESET"] == ["Loss"]


def test_a_caption_is_marked_too(colakit: Run) -> None:
    assert "Its caption says batch 32*a,b,c, seq_len 1024." in colakit("paper", "table7").out
    assert "Its caption says d 768, r 192, d_ff 2048." in colakit("paper", "table6").out
    assert "caption" not in colakit("paper", "table4").out


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_names_and_figures_are_whole_on_a_narrow_terminal(
    colakit: Run, monkeypatch: pytest.MonkeyPatch, part: Any
) -> None:  # Any: a Part
    monkeypatch.setattr(tables, "stdout_console", lambda: Console(width=40, force_terminal=True, no_color=True))
    out = colakit("paper", part.name).out
    assert "…" not in out.replace("table1…table7", "")
    for c in CLAIMS:
        if part.holds(c) and part.name != "table1":  # whose cells are prose
            assert c.printed in out
        if part.holds(c) and part.name != "text" and c.row != CAPTION:
            assert c.row in out


@pytest.mark.parametrize("args", [[], *([name] for name in NAMES)], ids=lambda args: " ".join(args) or "all")
@pytest.mark.parametrize("colours", [False, True])
def test_json_is_one_object(colakit: Run, monkeypatch: pytest.MonkeyPatch, args: list[str], colours: bool) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    if colours:
        monkeypatch.setenv("FORCE_COLOR", "1")
    outcome = colakit("paper", *args, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    printed = one_object(outcome.out)
    assert printed.keys() == {"schema", "claims", "contradictions"}
    wanted = [c for c in CLAIMS if not args or any(p.name == args[0] and p.holds(c) for p in PARTS)]
    assert [(c["table"], c["row"], c["column"]) for c in printed["claims"]] == [c.reference for c in wanted]
    named = {name for c in printed["claims"] for name in c["contradictions"]}
    assert {c["id"] for c in printed["contradictions"]} == named


def test_json_of_a_figure_and_of_a_contradiction(colakit: Run) -> None:
    printed = one_object(colakit("paper", "table4", "--json").out)
    cola = next(c for c in printed["claims"] if c["row"] == "CoLA" and c["column"] == "Params.")
    assert cola == {
        "table": "Table 4",
        "row": "CoLA",
        "column": "Params.",
        "value": 156.0,
        "unit": "M",
        "printed": "156M",
        "about": False,
        "quantity": "parameters",
        "preset": "cola",
        "command": "colakit params --preset cola",
        "untestable": None,
        "contradictions": ["cola-parameters-twice", "cola-parameters-per-entry-table4"],
    }
    twice = next(c for c in printed["contradictions"] if c["id"] == "cola-parameters-twice")
    assert twice["claims"][0] == {"table": "Table 4", "row": "CoLA", "column": "Params."}
    assert twice["evidence"] == []
    assert twice["figures"] == {"difference, %": pytest.approx(4.0)}
    assert twice["sentence"] == f"{twice['summary']}: one model, 4.0 % apart"


@pytest.mark.parametrize("name", ["table8", "table", "tabel4", "Table 4", ""])
def test_an_unknown_table_is_one_message_and_exit_2(colakit: Run, name: str) -> None:
    outcome = colakit("paper", name)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("─ Error ─") == 1
    assert f"{name!r} is not one of table1" in outcome.err


@pytest.mark.parametrize("name", ["4", "Table4", "TABLE4"])
def test_a_table_may_be_called_by_its_number_or_in_capitals(colakit: Run, name: str) -> None:
    assert colakit("paper", name).out == colakit("paper", "table4").out


def test_a_cell_without_a_command_is_named_where_its_column_has_one(colakit: Run) -> None:
    out = colakit("paper", "table4").out
    assert "\nOriginal, Reduction: not testable here: the paper prints no figure.\n" in out


def test_an_unknown_table_names_the_nearest(colakit: Run) -> None:
    assert "Did you mean table4?" in " ".join(colakit("paper", "tabel4").err.replace("│", "").split())
    assert "Did you mean" not in colakit("paper", "zzz").err


@pytest.mark.parametrize(("index", "letter"), [(0, "a"), (25, "z"), (26, "aa"), (27, "ab"), (52, "ba")])
def test_letters_of_footnotes(index: int, letter: str) -> None:
    assert _letter(index) == letter


@pytest.mark.parametrize("args", [[], ["table3"], ["--json"]], ids=lambda args: " ".join(args) or "all")
def test_it_answers_without_torch(args: list[str]) -> None:
    code = (
        "import sys\n"
        "from colakit.cli.app import main\n"
        "try:\n"
        f"    main(['paper', *{args!r}])\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'tokenizers', 'tensorboard', 'matplotlib', 'numpy'}\n"
        "heavy &= sys.modules.keys()\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_it_answers_before_torch_is_imported() -> None:
    """In processor time, which another process's load does not change; the faster of two runs of each."""

    def cpu_s(*args: str) -> float:
        times = []
        for _ in range(2):
            before = os.times()
            subprocess.run([sys.executable, *args], check=True, capture_output=True, timeout=120)
            after = os.times()
            times.append(after.children_user + after.children_system - before.children_user - before.children_system)
        return min(times)

    assert cpu_s("-m", "colakit", "paper") < cpu_s("-c", "import torch")
