"""The printed numbers of each system agree with the presets, and what cannot be met is marked."""

import pytest

from colakit.analysis.contradictions import contradiction_of
from colakit.analysis.params import total_params
from colakit.config.load import resolve
from colakit.config.presets import load_preset, preset_names
from colakit.paper.claims import CLAIMS, Claim, Quantity, claim

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


@pytest.mark.parametrize(("preset", "parameters", "loss"), [("refined", 92.2, 4.104), ("refined-tied", 82.2, 4.065)])
def test_the_refined_models(preset: str, parameters: float, loss: float) -> None:
    size, val_loss = claim(preset, "parameters"), claim(preset, "val_loss")
    assert size is not None
    assert val_loss is not None
    assert (size.value, size.unit, size.table) == (parameters, "M", "§6.2.3")
    assert (val_loss.value, val_loss.unit, val_loss.table) == (loss, "nats per token", "§6.2.4")


def test_a_table_prints_one_figure_of_a_kind_for_a_preset() -> None:
    tables = [c for c in CLAIMS if isinstance(c, Claim) and c.preset and c.table.startswith("Table")]
    keys = [(c.table, c.preset, c.quantity) for c in tables]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("preset", TABLE_4)
def test_the_row_is_the_one_the_preset_names(preset: str) -> None:
    rows = {c.row for c in CLAIMS if c.preset == preset and c.table in ("Table 4", "Table 5")}
    assert {f"Tables 4-5, {row}" for row in rows} == {load_preset(preset).about.paper}


@pytest.mark.parametrize("preset", preset_names())
def test_a_parameter_count_is_near_the_printed_one_or_contradicted(preset: str) -> None:
    printed = claim(preset, "parameters")
    if printed is None:
        assert preset in {"cola-m", "cola-fan-atf", "smollm2-stages"}
        return
    deviation = abs(total_params(resolve(preset).config.model) / 1e6 / printed.value - 1)
    assert (deviation > 0.03) == (contradiction_of(printed) is not None)
