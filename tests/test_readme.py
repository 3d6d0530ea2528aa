"""What the README shows of the counting commands is what they print, and every command in it parses."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
BLOCKS = [block for language, block in FENCED if not language]
SHELL = [block for language, block in FENCED if language == "sh"]


def colakit(*args: str) -> str:
    command = [sys.executable, "-m", "colakit", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize(
    ("start", "args"),
    [
        ("Table 6, d=768", ("flops", "--d", "768", "--r", "192")),
        ("Parameters, in millions", ("params",)),
        ("*a Table 7's", ("paper", "table7")),
    ],
)
def test_a_shown_table_is_what_the_command_prints(start: str, args: tuple[str, ...]) -> None:
    (block,) = (block for block in BLOCKS if block.startswith(start))
    printed = {line.rstrip() for line in colakit(*args).splitlines()}
    assert [line for line in block.splitlines() if line not in printed] == []


def commands() -> list[str]:
    lines = "\n".join(SHELL).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("colakit ")]


@pytest.mark.parametrize("line", commands())
def test_a_shown_command_has_options_that_exist(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    shown = colakit(*words[: 2 if words[0] in {"data", "presets"} else 1], "--help")
    assert [word for word in words if word.startswith("--") and word not in shown] == []


def test_the_number_of_figures_and_contradictions_is_as_stated() -> None:
    from colakit.analysis.contradictions import find_contradictions
    from colakit.paper.claims import CLAIMS

    assert f"all {len(CLAIMS)} figures and cells" in README
    assert f"{len(find_contradictions())} contradictions" in README


def test_the_ledgers_totals_are_as_stated() -> None:
    (total,) = (
        line.split()
        for line in colakit("params", "--preset", "cola-m", "--memory").splitlines()[-8:]
        if "total  " in line
    )
    assert f"({total[1]} GiB at batch 64, {total[2]} GiB with CoLA-M)" in README
