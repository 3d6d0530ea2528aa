"""FLOPs: Table 6 and small forward passes by hand, and identities between the two."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colakit.analysis.flops import Sizes, forward_flops, table6
from colakit.analysis.layers import block_layers
from colakit.config.schema import ModelConfig

PAPER = Sizes(n=1024, d=768, r=192, d_ff=2048)


def test_table_6_by_hand() -> None:
    rows = table6(Sizes(n=2, d=3, r=5, d_ff=7)).rows
    assert [(r.original.formula, r.original.flops) for r in rows] == [
        ("6nd²", 6 * 2 * 9),
        ("4n²d", 4 * 4 * 3),
        ("2nd²", 2 * 2 * 9),
        ("6nd·d_ff", 6 * 2 * 3 * 7),
    ]
    assert [(r.cola_printed.formula, r.cola_printed.flops) for r in rows] == [
        ("48ndr", 48 * 2 * 3 * 5),
        ("4n²d", 4 * 4 * 3),
        ("16ndr", 16 * 2 * 3 * 5),
        ("18nr(d+d_ff)", 18 * 2 * 5 * (3 + 7)),
    ]
    assert [(r.cola_forward.formula, r.cola_forward.flops) for r in rows] == [
        ("12ndr", 12 * 2 * 3 * 5),
        ("4n²d", 4 * 4 * 3),
        ("4ndr", 4 * 2 * 3 * 5),
        ("6nr(d+d_ff)", 6 * 2 * 5 * (3 + 7)),
    ]


def test_table_6_is_summed() -> None:
    total = table6(Sizes(n=2, d=3, r=5, d_ff=7)).total
    assert (total.original.flops, total.cola_printed.flops, total.cola_forward.flops) == (444, 3768, 1128)


def test_table_6_at_the_printed_sizes() -> None:
    """PAPER.md §4.1: printed, CoLA costs twice the dense projections and 3 % more feed-forward; consistently, half."""
    rows = {row.component: row for row in table6(PAPER).rows}
    printed = {name: round(100 * row.printed_change_frac, 1) for name, row in rows.items()}
    forward = {name: round(100 * row.forward_change_frac, 1) for name, row in rows.items()}
    assert printed == {
        "attention Q, K, V": 100.0,
        "attention product": 0.0,
        "attention projection": 100.0,
        "feed-forward": 3.1,
    }
    assert forward == {
        "attention Q, K, V": -50.0,
        "attention product": 0.0,
        "attention projection": -50.0,
        "feed-forward": -65.6,
    }


def test_only_the_formulas_that_mix_conventions_are_marked() -> None:
    marked = {row.component for row in table6(PAPER).rows if row.contradiction}
    assert marked == {"attention Q, K, V", "attention projection", "feed-forward"}


def test_the_printed_excess_is_what_the_marks_say() -> None:
    """§4.1: 48ndr and 16ndr are the sum of Q, K, V and the projection, with and without backward; 18 is 3 · 6."""
    qkv, _, projection, ffn = table6(Sizes(n=2, d=3, r=5, d_ff=7)).rows
    both = qkv.cola_forward.flops + projection.cola_forward.flops
    assert qkv.cola_printed.flops == 3 * both
    assert projection.cola_printed.flops == both
    assert ffn.cola_printed.flops == 3 * ffn.cola_forward.flops


# head_dim 4, K and V of width 4; ranks 12 // 4 = 3 and 20 // 4 = 5; 3 blocks
SMALL = ModelConfig(d_model=12, n_layers=3, n_heads=3, n_kv_heads=1, d_ff=20, vocab_size=50, seq_len=7, fan_ratio=0.25)
PER_BLOCKS = 3 * 2 * (5 * 7)  # blocks, a multiply and an add, 5 sequences of 7 tokens

COLA = {
    "q": PER_BLOCKS * (3 * 12 + 12 * 3),
    "k": PER_BLOCKS * (3 * 12 + 4 * 3),
    "v": PER_BLOCKS * (3 * 12 + 4 * 3),
    "attention_product": 3 * 4 * 5 * 7**2 * 12,
    "o": PER_BLOCKS * (3 * 12 + 12 * 3),
    "gate_up": PER_BLOCKS * (3 * 12 + 40 * 3),
    "down": PER_BLOCKS * (5 * 20 + 12 * 5),
    "head": 2 * (5 * 7) * (3 * 12 + 50 * 3),
}

BY_HAND = [
    ({}, {}),
    (
        {"linear": "dense"},
        {
            "q": PER_BLOCKS * 144,
            "k": PER_BLOCKS * 48,
            "v": PER_BLOCKS * 48,
            "o": PER_BLOCKS * 144,
            "gate_up": PER_BLOCKS * 480,
            "down": PER_BLOCKS * 240,
            "head": 2 * 35 * 600,
        },
    ),
    # two A's; B of 3 periodic and 6 other features for q, of 1 and 2 for k and v
    (
        {"fan": "qkv"},
        {
            "q": PER_BLOCKS * (2 * 36 + 9 * 3),
            "k": PER_BLOCKS * (2 * 36 + 3 * 3),
            "v": PER_BLOCKS * (2 * 36 + 3 * 3),
        },
    ),
    ({"fan": "qkv", "fan_ratio": 0.0}, {}),
    ({"fan": "input"}, {"fan": PER_BLOCKS * (3 * 12 + 6 * 12)}),
    ({"tie_embeddings": True}, {"head": 2 * 35 * 600}),  # no parameters of its own, the product all the same
    ({"norm": "listing"}, {}),
]


@pytest.mark.parametrize(("changes", "flops"), BY_HAND, ids=str)
def test_small_models_counted_by_hand(changes: dict[str, object], flops: dict[str, int]) -> None:
    count = forward_flops(SMALL.model_copy(update=changes), batch_size=5)
    expected = COLA | flops
    assert {component.component: component.flops for component in count.components} == expected
    assert count.total == sum(expected.values())
    assert (count.batch_size, count.seq_len) == (5, 7)


def test_the_causal_product_counts_the_lower_triangle() -> None:
    assert forward_flops(SMALL, batch_size=5).causal_attention_product == 3 * 4 * 5 * (1 + 2 + 3 + 4 + 5 + 6 + 7) * 12


def test_a_formula_evaluates_to_its_count() -> None:
    for component in forward_flops(SMALL.model_copy(update={"fan": "qkv"}), batch_size=5).components:
        expression = component.formula.replace("·", "*").replace("×", "*").replace("²", "**2")
        assert eval(expression) == component.flops


@given(d=st.integers(2, 30).map(lambda k: 8 * k), d_ff=st.integers(8, 300), n=st.integers(1, 50))
def test_table_6_is_the_forward_pass_of_one_block(d: int, d_ff: int, n: int) -> None:
    """Multi-head attention of one dense block is Table 6's Original column; so is CoLA's attention its consistent one.

    Not CoLA's feed-forward: here gate and up share one A, which Table 6 counts twice.
    """
    table = table6(Sizes(n=n, d=d, r=d // 4, d_ff=d_ff))
    rows = {row.component: row for row in table.rows}
    shape = {"d_model": d, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "d_ff": d_ff, "seq_len": n}
    dense, cola = (_by_component(ModelConfig(**shape, linear=linear)) for linear in ("dense", "cola"))  # type: ignore[arg-type]
    assert dense["q"] + dense["k"] + dense["v"] == rows["attention Q, K, V"].original.flops
    assert dense["attention_product"] == rows["attention product"].original.flops
    assert dense["o"] == rows["attention projection"].original.flops
    assert dense["gate_up"] + dense["down"] == rows["feed-forward"].original.flops
    assert cola["q"] + cola["k"] + cola["v"] == rows["attention Q, K, V"].cola_forward.flops
    assert cola["o"] == rows["attention projection"].cola_forward.flops


def _by_component(model: ModelConfig) -> dict[str, int]:
    return {component.component: component.flops for component in forward_flops(model, batch_size=1).components}


def test_flops_grow_with_the_batch_and_with_nothing_else() -> None:
    assert forward_flops(SMALL, batch_size=6).total == 6 * forward_flops(SMALL, batch_size=1).total


def test_the_features_of_fan_fill_the_width() -> None:
    """Cosine, sine and the rest: p + p + rest is d_out, whatever the ratio."""
    for ratio in (0.1, 0.25, 0.49):
        layers = {
            layer.name: layer for layer in block_layers(SMALL.model_copy(update={"fan": "qkv", "fan_ratio": ratio}))
        }
        (*_, (periodic, _), (rest, _)) = layers["q"].matrices
        assert 2 * periodic + rest == 12
