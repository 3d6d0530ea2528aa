"""``colakit paper``: what the paper prints, where that contradicts itself, and what measures each figure here."""

import difflib
import string
from collections.abc import Sequence
from typing import Annotated

import typer

from colakit.analysis.contradictions import Contradiction, contradictions_of, find_contradictions
from colakit.cli import options
from colakit.paper.claim import CAPTION
from colakit.paper.claims import CLAIMS, PARTS, AnyClaim, Claim, Part, Reference, TextClaim
from colakit.report.tables import (
    add_name_column,
    add_number_column,
    add_text_column,
    new_table,
    print_json,
    print_note,
    print_table,
)

_PRESET = "PRESET"
"""Stands for the preset of a row, where one command serves many rows."""


def paper(
    table: Annotated[
        str | None,
        typer.Argument(
            metavar="table1…table7|text",
            help="A table of the paper, or the figures of its running text; all in brief unless given.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Print what the paper prints, what contradicts it, and which command measures it here."""
    part = None if table is None else _part(table)
    claims = [claim for claim in CLAIMS if part is None or part.holds(claim)]
    found = _concerning(claims)
    if json:
        print_json({"claims": [_claim_json(c) for c in claims], "contradictions": [_found_json(f) for f in found]})
    elif part is None:
        _print_overview(found)
    elif part.name == "text":
        _print_text(part, claims, found)
    else:
        _print_grid(part, claims, found)


def _part(name: str) -> Part:
    names = [part.name for part in PARTS]
    for spelling in (name.lower(), f"table{name}"):
        if spelling in names:
            return PARTS[names.index(spelling)]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise typer.BadParameter(f"{name!r} is not one of {', '.join(names)}.{hint}", param_hint="TABLE")


def _concerning(claims: Sequence[AnyClaim]) -> list[Contradiction]:
    printed = {claim.reference for claim in claims}
    return [found for found in find_contradictions() if printed & set(found.claims)]


def _claim_json(claim: AnyClaim) -> dict[str, object]:
    return {
        "table": claim.table,
        "row": claim.row,
        "column": claim.column,
        "value": claim.value,
        "unit": claim.unit,
        "printed": claim.printed,
        "about": isinstance(claim, Claim) and claim.about,
        "quantity": claim.quantity,
        "preset": claim.preset,
        "command": claim.command,
        "untestable": claim.untestable,
        "contradictions": [found.identifier for found in contradictions_of(claim)],
    }


def _found_json(found: Contradiction) -> dict[str, object]:
    def places(references: Sequence[Reference]) -> list[dict[str, str]]:
        return [{"table": table, "row": row, "column": column} for table, row, column in references]

    return {
        "id": found.identifier,
        "claims": places(found.claims),
        "evidence": places(found.evidence),
        "figures": dict(found.figures),
        "summary": found.summary,
        "sentence": found.sentence,
    }


def _print_overview(found: Sequence[Contradiction]) -> None:
    table = new_table("What the paper prints")
    add_name_column(table, "name")
    add_text_column(table, "about")
    for header in ("figures", "with a command here", "contradicted"):
        add_number_column(table, header)
    for part in PARTS:
        claims = [claim for claim in CLAIMS if part.holds(claim)]
        with_command = sum(claim.command is not None for claim in claims)
        contradicted = sum(bool(contradictions_of(claim)) for claim in claims)
        table.add_row(part.name, part.caption, str(len(claims)), str(with_command), str(contradicted))
    print_table(table)
    table = new_table(f"{len(found)} contradictions, computed from these figures")
    add_name_column(table, "where")
    add_text_column(table, "what")
    for contradiction in found:
        table.add_row(", ".join(contradiction.places), contradiction.summary)
    print_table(table)
    print_note(
        "`colakit paper table4` prints a table in full, with its contradictions and the commands that measure it."
    )


def _print_grid(part: Part, claims: Sequence[AnyClaim], found: Sequence[Contradiction]) -> None:
    cells = {(c.row, c.column): c for c in claims if c.row != CAPTION}
    caption = [f"{c.column} {_cell(c, found)}" for c in claims if c.row == CAPTION]
    table = new_table(f"{part.title}: {part.caption}")
    columns = list(dict.fromkeys(column for _, column in cells))
    add_name_column(table, "")
    for column in columns:
        prose = any(isinstance(c, TextClaim) and c.quantity == "statement" for c in claims if c.column == column)
        (add_text_column if prose else add_number_column)(table, column)
    for row in dict.fromkeys(row for row, _ in cells):
        table.add_row(row, *(_cell(cells[row, column], found) for column in columns))
    print_table(table)
    if caption:
        print_note(f"Its caption says {', '.join(caption)}.")
    _print_footnotes(found)
    _print_methods(part, claims)


def _print_text(part: Part, claims: Sequence[AnyClaim], found: Sequence[Contradiction]) -> None:
    table = new_table(f"{part.title}: {part.caption}")
    add_name_column(table, "section")
    add_text_column(table, "about")
    add_text_column(table, "figure")
    add_number_column(table, "printed")
    add_name_column(table, "unit")
    add_text_column(table, "measured here by")
    for claim in claims:
        unit = claim.unit if claim.unit not in (None, "%", "×", "M") else ""
        how = claim.command or claim.untestable or ""
        about = "about " if isinstance(claim, Claim) and claim.about else ""
        table.add_row(claim.table, claim.row, claim.column, about + _cell(claim, found), unit, how)
    print_table(table)
    _print_footnotes(found)


def _cell(claim: AnyClaim, found: Sequence[Contradiction]) -> str:
    """The figure as printed, with a star and the letters of its footnotes."""
    letters = [_letter(i) for i, f in enumerate(found) if claim.reference in f.claims]
    return f"{claim.printed}*{','.join(letters)}" if letters else claim.printed


def _letter(index: int) -> str:
    """a, b, …, z, aa, ab, …"""
    first, last = divmod(index, len(string.ascii_lowercase))
    return (_letter(first - 1) if first else "") + string.ascii_lowercase[last]


def _print_footnotes(found: Sequence[Contradiction]) -> None:
    for i, contradiction in enumerate(found):
        print_note(f"*{_letter(i)} {contradiction.sentence}.")


def _print_methods(part: Part, claims: Sequence[AnyClaim]) -> None:
    commands: dict[str, list[AnyClaim]] = {}
    reasons: dict[str, list[AnyClaim]] = {}
    for claim in claims:
        line = claim.command
        if line is None:
            reasons.setdefault(claim.untestable or "", []).append(claim)
        else:
            preset = f"--preset {claim.preset}"
            general = line.replace(preset, f"--preset {_PRESET}") if claim.preset else line
            commands.setdefault(general, []).append(claim)
    table = new_table("Measured here by")
    add_name_column(table, "command")
    add_text_column(table, "figures")
    for line, measured in commands.items():
        table.add_row(line, _metrics(part, measured))
    print_table(table)
    if any(_PRESET in line for line in commands):
        presets = dict.fromkeys(claim.preset for claim in claims if claim.preset)
        print_note(f"{_PRESET} is the row's or column's own: {', '.join(presets)}.")
    with_command = {_metric(part, claim) for each in commands.values() for claim in each}
    for reason, unmeasured in reasons.items():
        # Where other figures of a metric have a command, the cells without one are named.
        names = [f"{c.row}, {c.column}" if _metric(part, c) in with_command else _metric(part, c) for c in unmeasured]
        print_note(f"{'; '.join(dict.fromkeys(names))}: {reason}.")


def _metrics(part: Part, claims: Sequence[AnyClaim]) -> str:
    """What `claims` are figures of, each once."""
    return ", ".join(dict.fromkeys(_metric(part, claim) for claim in claims))


def _metric(part: Part, claim: AnyClaim) -> str:
    return claim.row if part.metrics == "rows" and claim.row != CAPTION else claim.column
