"""The printed numbers agree with the paper's own text and with the presets, and every contradiction is marked."""

import pytest

from colakit.analysis.params import total_params
from colakit.config.load import resolve
from colakit.config.presets import load_preset, preset_names
from colakit.paper.claims import CLAIMS, TABLE_6, Quantity, claim

TABLE_4 = [
    "original",
    "cola",
    "cola-smollm2",
    "cola-smollm2-muon",
    "cola-fan",
    "cola-fan-muon",
    "cola-fan-dropout",
    "cola-fan-dropout-muon",
]


@pytest.mark.parametrize(
    ("quantity", "unit", "printed"),
    [
        ("parameters", "M", [236, 156, 86.2, 86.2, 92.2, 92.2, 92.2, 92.2]),
        ("it_per_s", "it/s", [3.00, 5.00, 6.67, 5.20, 6.24, 4.88, 5.68, 4.42]),
        ("vram", "GB", [14.0, 12.0, 11.0, 11.0, 11.2, 11.2, 12.4, 12.4]),
        ("largest_batch", "sequences", [16, 32, 36, 36, 32, 32, 28, 28]),
        ("loss", "nats per token", [4.50, 4.52, 4.49, 4.46, 4.47, 4.43, 4.45, 4.41]),
    ],
)
def test_tables_4_and_5(quantity: Quantity, unit: str, printed: list[float]) -> None:
    claims = [claim(preset, quantity) for preset in TABLE_4]
    assert [c and c.value for c in claims] == printed
    assert {c and c.unit for c in claims} == {unit}
    assert {c and c.table for c in claims} == {"Table 5" if quantity == "largest_batch" else "Table 4"}


def test_the_refined_models() -> None:
    refined = {(c.preset, c.quantity): (c.value, c.unit) for c in CLAIMS if c.preset.startswith("refined")}
    assert refined == {
        ("refined", "parameters"): (92.2, "M"),
        ("refined", "val_loss"): (4.104, "nats per token"),
        ("refined-tied", "parameters"): (82.2, "M"),
        ("refined-tied", "val_loss"): (4.065, "nats per token"),
    }


def test_the_printed_reductions_follow_from_the_claims() -> None:
    """Table 4's own column of reductions, the 22 % that Muon costs, and the 10.8 % that tying saves."""

    def value(preset: str, quantity: Quantity) -> float:
        found = claim(preset, quantity)
        assert found is not None
        return found.value

    reductions = [round(100 * (1 - value(p, "parameters") / value("original", "parameters")), 1) for p in TABLE_4[1:]]
    assert reductions == [33.9, 63.5, 63.5, 60.9, 60.9, 60.9, 60.9]
    assert round(100 * (1 - value("cola-smollm2-muon", "it_per_s") / value("cola-smollm2", "it_per_s"))) == 22
    assert round(100 * (1 - value("refined-tied", "parameters") / value("refined", "parameters")), 1) == 10.8


def test_claims_are_unique_and_about_shipped_presets() -> None:
    keys = [(c.preset, c.quantity) for c in CLAIMS]
    assert len(set(keys)) == len(keys)
    assert {c.preset for c in CLAIMS} <= set(preset_names())


@pytest.mark.parametrize("preset", TABLE_4)
def test_the_row_is_the_one_the_preset_names(preset: str) -> None:
    rows = {c.row for c in CLAIMS if c.preset == preset}
    assert {f"Tables 4-5, {row}" for row in rows} == {load_preset(preset).about.paper}


@pytest.mark.parametrize("preset", preset_names())
def test_a_parameter_count_is_near_the_printed_one_or_marked(preset: str) -> None:
    printed = claim(preset, "parameters")
    if printed is None:
        assert preset in {"cola-m", "cola-fan-atf"}
        return
    deviation = abs(total_params(resolve(preset).config.model) / 1e6 / printed.value - 1)
    assert (deviation > 0.03) == (printed.contradiction is not None)


def test_what_the_paper_does_not_print_is_none() -> None:
    assert claim("cola-m", "parameters") is None
    assert claim("original", "val_loss") is None


def test_table_6_has_both_columns_of_four_rows() -> None:
    assert len(TABLE_6) == 8
    assert len({(c.row, c.column) for c in TABLE_6}) == 8
    assert {c.table for c in TABLE_6} == {"Table 6"}
