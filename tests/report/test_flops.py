"""The tables of `flops`: every figure of a record in its place, from records written by hand."""

from dataclasses import replace

from rich.table import Table

from colakit.records.analysis import ComponentFlops, FlopRecord, SeqLenFlops
from colakit.report.flops import growth_table, step_notes, step_table, steps_table

RECORD = FlopRecord(
    preset="mine",
    max_steps=10**6,
    batch_size=2,
    seq_len=5,
    tokens=10,
    components=(
        ComponentFlops("q", "…", forward=2_000, training=6_000, recompute=700),
        ComponentFlops("attention_product", "…", forward=500, training=1_500, recompute=0),
    ),
    forward=2_500,
    model_flops=7_500,
    attention_pairs="all",
    causal_attention_product=300,
    causal_model_flops=6_900,
    recompute=700,
    newton_schulz=80,
    hardware_flops=8_280,
    model_flops_per_token=750,
    by_seq_len=(SeqLenFlops(5, 750, 0.2), SeqLenFlops(10, 900, 1 / 3)),
    attention_overtakes_at=1_234,
)


def rows(table: Table) -> dict[str, list[str]]:
    cells = zip(*(column.cells for column in table.columns), strict=True)
    return {str(first): [str(cell) for cell in rest] for first, *rest in cells}


def test_one_step() -> None:
    assert rows(step_table(RECORD)) == {
        "q": ["2,000", "6,000", "600", "80.0 %", "700"],
        "attention_product": ["500", "1,500", "150", "20.0 %", "–"],
        "model FLOPs": ["2,500", "7,500", "750", "100.0 %", ""],
        "causal attention_product": ["300", "900", "90", "12.0 %", ""],
        "model FLOPs, causal": ["", "6,900", "690", "92.0 %", ""],
        "recompute": ["", "700", "70", "9.3 %", ""],
        "Newton–Schulz": ["", "80", "8", "1.1 %", ""],
        "hardware FLOPs": ["", "8,280", "828", "110.4 %", ""],
    }


def test_growth() -> None:
    assert rows(growth_table(RECORD)) == {"5": ["750", "20.0 %"], "10": ["900", "33.3 %"]}


def test_several_presets_in_gigaflop() -> None:
    large = replace(
        RECORD,
        components=(ComponentFlops("q", "…", forward=2 * 10**12, training=6 * 10**12, recompute=0),),
        model_flops=6 * 10**12,
        recompute=0,
        newton_schulz=4 * 10**9,
        hardware_flops=6_004 * 10**9,
        model_flops_per_token=7_500_000,
    )
    table = steps_table([large, replace(RECORD, preset="other")])
    assert [column.header for column in table.columns][2:4] == ["q", "attention_product"]
    assert rows(table)["mine"] == ["2 × 5", "6,000", "–", "6,000", "–", "4", "6,004", "7.5M"]


def test_a_whole_run_and_where_attention_overtakes() -> None:
    note = step_notes([replace(RECORD, hardware_flops=3 * 10**13)])[0]
    assert note.startswith("mine: a run of 1,000,000 such steps is 30 × 10¹⁸ hardware FLOPs. From 1,234 tokens a seq")
