"""Every printed figure is there once: rows and columns complete, values as printed, and a way to measure it."""

import dataclasses
import shlex
from typing import Any

import pytest
import typer

from colakit.cli.app import app
from colakit.config.load import resolve
from colakit.config.presets import preset_names
from colakit.paper import methods
from colakit.paper.claim import CAPTION, number, words
from colakit.paper.claims import CLAIMS, PARTS, TABLE_6, AnyClaim, Claim, FormulaClaim, claim
from colakit.records.bench import BenchRecord

SYSTEMS = [
    "Original",
    "CoLA",
    "CoLA + SmolLM2",
    "CoLA + SmolLM2 + Muon",
    "CoLA + FANformer + SmolLM2",
    "CoLA + FANformer + SmolLM2 + Muon",
    "CoLA + FANformer + Dropout + SmolLM2",
    "CoLA + FANformer + Dropout + SmolLM2 + Muon",
]
FIVE = ["Original", "CoLA+SmolLM2", "CoLA+SmolLM2+Muon", "FANformer+SmolLM2", "FANformer+SmolLM2+Muon"]


def table(name: str) -> dict[tuple[str, str], str]:
    """Row and column → printed, without the caption's figures."""
    return {(c.row, c.column): c.printed for c in CLAIMS if c.table == name and c.row != CAPTION}


def caption(name: str) -> dict[str, float | str | None]:
    return {c.column: c.value for c in CLAIMS if c.table == name and c.row == CAPTION}


def columns(name: str, *rows: str) -> list[list[str]]:
    cells = table(name)
    return [[printed for (row, _), printed in cells.items() if row == wanted] for wanted in rows]


@pytest.mark.parametrize(
    ("name", "n_rows", "n_columns"),
    [
        ("Table 1", 8, 2),
        ("Table 2", 10, 2),
        ("Table 3", 6, 9),
        ("Table 4", 8, 5),
        ("Table 5", 8, 3),
        ("Table 6", 4, 2),
        ("Table 7", 8, 5),
    ],
)
def test_every_table_is_complete(name: str, n_rows: int, n_columns: int) -> None:
    cells = table(name)
    rows, headers = {row for row, _ in cells}, {column for _, column in cells}
    assert (len(rows), len(headers)) == (n_rows, n_columns)
    assert cells.keys() == {(row, column) for row in rows for column in headers}


def test_each_claim_is_printed_in_one_place_and_part() -> None:
    assert len({c.reference for c in CLAIMS}) == len(CLAIMS)
    for c in CLAIMS:
        assert [part.name for part in PARTS if part.holds(c)] == [
            "text" if c.table.startswith("§") else c.table.lower().replace(" ", "")
        ]


def test_captions() -> None:
    assert caption("Table 5") == {"batch size": 16}
    assert caption("Table 6") == {"d": 768, "r": 192, "d_ff": 2048}
    assert caption("Table 7") == {"batch": 32, "seq_len": 1024}


def test_table_1() -> None:
    memory = [c.value for c in CLAIMS if c.table == "Table 1" and c.row == "memory required"]
    assert memory == [1.0, 2.0]
    assert columns("Table 1", "optimizer states") == [["momentum (1x)", "momentum + second moment (2x)"]]


@pytest.mark.parametrize(
    ("row", "field", "optimizers"),
    [
        ("learning rate", "lr", ("AdamW", "Muon")),
        ("weight decay", "weight_decay", ("AdamW", "Muon")),
        ("β₁ / momentum", "beta1", ("AdamW",)),
        ("β₁ / momentum", "momentum", ("Muon",)),
        ("β₂", "beta2", ("AdamW",)),
        ("epsilon", "eps", ("AdamW",)),
        ("Newton-Schulz iterations", "ns_steps", ("Muon",)),
        ("warm-up steps", "warmup_steps", ("AdamW", "Muon")),
    ],
)
def test_table_2_is_what_the_presets_use(row: str, field: str, optimizers: tuple[str, ...]) -> None:
    presets = {"AdamW": "cola-smollm2", "Muon": "cola-smollm2-muon"}
    for column in optimizers:
        (printed,) = (c for c in CLAIMS if c.reference == ("Table 2", row, column))
        assert printed.value == getattr(resolve(presets[column]).config.optim, field)
        assert printed.command == f"colakit presets show {presets[column]}"


def test_what_table_2_leaves_out_is_none() -> None:
    left_out = {c.reference[1:]: c.value for c in CLAIMS if c.table == "Table 2" and c.printed == "N/A"}
    assert left_out == {
        ("β₂", "Muon"): None,
        ("epsilon", "Muon"): None,
        ("Newton-Schulz iterations", "AdamW"): None,
    }


def test_table_3() -> None:
    assert columns("Table 3", *(f"batch {n}" for n in methods.TABLE_3_BATCHES)) == [
        ["4", "42.4", "28.8", "-32%", "96", "62", "2.83", "2.91", "+2.8%"],
        ["8", "81.6", "61.2", "-25%", "97", "68", "2.81", "2.85", "+1.4%"],
        ["16", "156.8", "131.2", "-16%", "98", "73", "2.79", "2.74", "-1.8%"],
        ["32", "300.8", "278.4", "-7%", "98", "78", "2.76", "2.64", "-4.3%"],
        ["64", "576.0", "588.8", "+2%", "97", "83", "2.73", "2.53", "-7.3%"],
        ["128", "1113.6", "1228.8", "+10%", "96", "86", "2.71", "2.45", "-9.6%"],
    ]


def test_table_5_repeats_table_4() -> None:
    four, five = table("Table 4"), table("Table 5")
    for column in ("VRAM (GB)", "it/s"):
        assert [five[row, column] for row in SYSTEMS] == [four[row, column] for row in SYSTEMS]


def test_table_6() -> None:
    assert columns("Table 6", *dict.fromkeys(c.row for c in TABLE_6)) == [
        ["6nd²", "48ndr"],
        ["4n²d", "4n²d"],
        ["2nd²", "16ndr"],
        ["6nd·d_ff", "18nr(d+d_ff)"],
    ]
    assert [c.value for c in TABLE_6] == [c.formula for c in TABLE_6] == [c.printed for c in TABLE_6]


def test_table_7() -> None:
    cells = table("Table 7")
    rows = list(dict.fromkeys(row for row, _ in cells))
    assert [[cells[row, column] for column in FIVE] for row in rows] == [
        ["87%", "96%", "75%", "94%", "72%"],
        ["333", "150", "192", "160", "208"],
        ["14.0", "9.0", "9.0", "9.2", "9.2"],
        ["4.8", "3.0", "3.0", "3.2", "3.2"],
        ["742", "893", "754", "876", "742"],
        ["mod.", "min.", "min.", "min.", "min."],
        ["3,072", "6,827", "5,333", "6,400", "4,923"],
        ["high", "high", "low", "high", "low"],
    ]


@pytest.mark.parametrize(
    ("section", "printed"),
    [
        ("§2.1.4", "12% | 4% | 5%"),
        ("§2.3.4", "7% | 0.2 | 11.5 | 12.4 | 8% | 6.4%"),
        ("§2.3.5", "0.10 | 0.15 | 0.15 | 0.25 | 0.25 | 0.35"),
        ("§2.2", "95%"),
        ("§2.3.2", "0.15 | 0.1 | 0.3"),
        ("§3.2", "2.5 million"),
        ("§4.2", "50% | 75% | 98%"),
        ("§5.5", "64"),
        ("§5.6", "50%"),
        ("§4.1.2", "3.4445 | -4.7750 | 2.0315 | 5 | 10"),
        ("§5.1", "102,000 | 49,152 | 150 million | 86.2 million | 42.5%"),
        ("§5.4", "100,000 | 15 | 33 | 2.2× | 22%"),
        (
            "§5.7",
            "6 | 1 million | 16 | 4.6 | 4.34 | 5.6% | 4.36 | 70,000 | 130K | 0.02 | 98% | 6,000 | 98% "
            "| 75% | 13% | 36% | 19% | 37% | 4.50 | 4.46 | 6.4%",
        ),
        ("§5.8", "25% | almost double"),
        (
            "§5.9",
            "2.5 million | 2 | 4 | 16 | 5.94 | 5.24 | double | 20,000 | 0.21 | 5.125 | 4.2916 | 16% | "
            "4.3 | 0.2238 | 0.226 | 1% | 4.2628 | 4.2538 | 0.04 | 0.07 | 5.68 | 5.24",
        ),
        ("§6.1.1", "1e-8 | 1e-5 | 18%"),
        ("§6.1.2", "6% | 23%"),
        (
            "§6.1.3",
            "0.05 | 0.07 | 0.09 | 0.12 | 0.15 | 0.09 | 200,000 | 2.5 million | 0.21 | 45% | half | 4.29 | a tenth",
        ),
        ("§6.2.3", "92.2 | 82.2 | 10.8% | 5% | 12 times | 7% | 5%"),
        ("§6.2.4", "1,000 | 5,000 | 65% | 2.5 million | 4.21 | 208,333 | 4.104 | 208,333 | 4.065"),
        ("§6.2.5", "1% | 8.3%"),
    ],
)
def test_figures_of_the_text(section: str, printed: str) -> None:
    assert " | ".join(c.printed for c in CLAIMS if c.table == section) == printed


def test_further_figures_of_the_text() -> None:
    found = {c.reference: c.value for c in CLAIMS}
    ddp = "CoLA_FAN, progressive dropout"
    assert found["§3.2", "FineWeb-Edu", "training examples"] == 2.5e6
    assert found["§5.5", "CoLA-M", "Max batch"] == 64
    assert found["§5.7", "AdamW (version 20)", "steps in Figure 6"] == 130_000
    assert [found["§5.9", ddp, f"training loss, {end}"] for end in ("start", "end")] == [5.125, 4.2916]
    assert [found["§5.9", ddp, f"validation loss, {end}"] for end in ("start", "end")] == [4.2628, 4.2538]
    assert [found["§5.9", ddp, f"validation accuracy, {end}"] for end in ("start", "end")] == [0.2238, 0.226]
    assert [found["§6.1.3", "dropout grid", f"value {i}"] for i in range(1, 6)] == [0.05, 0.07, 0.09, 0.12, 0.15]
    assert found["§6.2.4", "unrefined", "Validation loss"] == 4.21


# values, units, rounding


@pytest.mark.parametrize(
    ("printed", "unit", "value", "half_step"),
    [
        ("4.50", "nats per token", 4.5, 0.005),
        ("3,072", "tokens/s", 3072, 0.5),
        ("-32%", "%", -32, 0.5),
        ("+2.8%", "%", 2.8, 0.05),
        ("5e-4", "", 5e-4, 0.5e-4),
        ("236M", "M", 236, 0.5),
        ("16", "sequences", 16, 0.0),
    ],
)
def test_a_number_is_read_as_printed(printed: str, unit: str, value: float, half_step: float) -> None:
    found = number("Table 9", "row", "column", printed, unit, "setting", methods.DEFINITION)
    assert found.printed == printed
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.half_step == pytest.approx(half_step)


def test_words_scale_a_number() -> None:
    place = ("Table 9", "row", "column")
    scaled = number(*place, "2.5 million", "examples", "examples", methods.DEFINITION, value=2.5e6)
    assert scaled.value == 2.5e6
    assert scaled.half_step == pytest.approx(5e4)
    assert number(*place, "double", "×", "ratio", methods.DEFINITION, value=2.0).value == 2.0
    with pytest.raises(ValueError, match="no number in 'double'"):
        number(*place, "double", "×", "ratio", methods.DEFINITION)
    assert words(*place, "–", methods.DEFINITION).value is None


def test_every_number_has_a_unit_that_is_text_and_every_word_has_none() -> None:
    for c in CLAIMS:
        assert (c.unit is not None) == isinstance(c, Claim | FormulaClaim)


# how each is measured


def with_command() -> list[AnyClaim]:
    return list({c.command: c for c in CLAIMS if c.command}.values())


def test_every_claim_has_a_command_or_a_reason() -> None:
    for c in CLAIMS:
        assert (c.command is None) != (c.untestable is None), c.reference
        assert c.untestable is None or c.untestable.startswith("not testable here")


def test_claims_are_about_shipped_presets_and_name_them() -> None:
    assert {c.preset for c in CLAIMS} - {None} <= set(preset_names())
    for c in CLAIMS:
        if c.preset and c.command and "flops" not in c.command:
            assert f" {c.preset}" in c.command, c.reference


def parse(line: str) -> dict[str, Any]:  # Any: values of options
    """What the real command line reads from `line`, whose command is not run; raises where it would be refused."""
    program, *args = shlex.split(line)
    assert program == "colakit"
    command: Any = typer.main.get_command(app)  # Any: Typer brings a click of its own
    # Of those that have subcommands, `bench` does something by itself.
    while hasattr(command, "commands") and not (command.invoke_without_command and (args or ["-"])[0].startswith("-")):
        command = command.commands[args.pop(0)]
    values = command.make_context(command.name, args).params
    assert isinstance(values, dict)
    return values


@pytest.mark.parametrize("claim", with_command(), ids=lambda c: c.command)
def test_every_command_is_one_of_this_tool(claim: AnyClaim) -> None:
    assert claim.command is not None
    for line in claim.command.split(" && "):
        values = parse(line)
        named = values.get("preset") or values.get("presets") or values.get("name") or []
        for preset in [named] if isinstance(named, str) else named:
            resolve(preset, sets=values.get("sets") or [])


def test_parsing_refuses_what_the_tool_refuses() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse("colakit bench --presets cola")
    with pytest.raises(KeyError):
        parse("colakit measure")


def test_bench_records_what_its_commands_are_said_to_measure() -> None:
    names = {field.name for field in dataclasses.fields(BenchRecord)}
    assert {"gpu_util_frac", "gb_per_s", "forward_ms", "step_ms", "peak_memory_gib", "tokens_per_s"} <= names


def test_what_was_missing_once_is_a_command_now() -> None:
    loss, batch = claim("cola", "loss"), claim("cola", "largest_batch")
    spectrum = next(c for c in CLAIMS if c.method.command == methods.spectrum().command)
    assert loss is not None
    assert loss.method.command == "colakit train --preset cola"
    assert (loss.command, loss.untestable) == ("colakit train --preset cola", None)
    assert batch is not None
    assert (batch.command, batch.untestable) == ("colakit bench --preset cola --max-batch", None)
    assert (spectrum.command, spectrum.untestable) == ("colakit eval RUN --spectrum", None)


# look-up


def test_claim_finds_the_first_printed() -> None:
    found = claim("cola", "parameters")
    assert found is not None
    assert (found.value, found.unit, found.table) == (156.0, "M", "Table 4")
    reached = claim("cola-fan-dropout", "val_loss")
    assert reached is not None
    assert reached.value == 4.2538


def test_what_the_paper_does_not_print_is_none() -> None:
    assert claim("cola-m", "parameters") is None
    assert claim("cola-fan-atf", "parameters") is None
    assert claim("original", "val_loss") is None
