"""Table 6: by hand at small sizes, at the printed ones, and against the model it describes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colakit.analysis.flops import step_flops
from colakit.analysis.table6 import Sizes, table6
from colakit.config.schema import ModelConfig, RunConfig

PAPER = Sizes(n=1024, d=768, r=192, d_ff=2048)
SMALL = Sizes(n=2, d=3, r=5, d_ff=7)


def test_table_6_by_hand() -> None:
    components = table6(SMALL).components
    assert [(c.dense_formula, c.paper_dense) for c in components] == [
        ("6nd²", 6 * 2 * 9),
        ("4n²d", 4 * 4 * 3),
        ("2nd²", 2 * 2 * 9),
        ("6nd·d_ff", 6 * 2 * 3 * 7),
    ]
    assert [(c.paper_cola_formula, c.paper_cola) for c in components] == [
        ("48ndr", 48 * 2 * 3 * 5),
        ("4n²d", 4 * 4 * 3),
        ("16ndr", 16 * 2 * 3 * 5),
        ("18nr(d+d_ff)", 18 * 2 * 5 * (3 + 7)),
    ]
    assert [(c.cola_formula, c.cola_forward) for c in components] == [
        ("12ndr", 12 * 2 * 3 * 5),
        ("4n²d", 4 * 4 * 3),
        ("4ndr", 4 * 2 * 3 * 5),
        ("6nr(d+d_ff)", 6 * 2 * 5 * (3 + 7)),
    ]
    for c in components:
        assert (c.dense_forward, c.dense_training, c.cola_training) == (
            c.paper_dense,
            3 * c.paper_dense,
            3 * c.cola_forward,
        )


def test_table_6_is_summed() -> None:
    total = table6(SMALL).totals
    assert (total.paper_dense, total.paper_cola, total.cola_forward) == (444, 3768, 1128)
    assert (total.dense_training, total.cola_training) == (1332, 3384)
    assert total.ratio == pytest.approx(1128 / 444)


def test_table_6_at_the_printed_sizes() -> None:
    """PAPER.md §4.1: printed, CoLA costs twice the dense projections and 3 % more feed-forward; consistently, half."""
    components = table6(PAPER).components
    assert [round(c.paper_ratio, 3) for c in components] == [2.0, 1.0, 2.0, 1.031]
    assert [round(c.ratio, 3) for c in components] == [0.5, 1.0, 0.5, 0.344]


def test_the_printed_excess_is_three_fold_training_and_a_sum() -> None:
    """§4.1: 48ndr and 16ndr are the sum of Q, K, V and the projection, with and without backward; 18 is 3 · 6."""
    qkv, _, projection, ffn = table6(SMALL).components
    both = qkv.cola_forward + projection.cola_forward
    assert qkv.paper_cola == 3 * both
    assert projection.paper_cola == both
    assert ffn.paper_cola == 3 * ffn.cola_forward


@given(d=st.integers(2, 30).map(lambda k: 8 * k), d_ff=st.integers(8, 300), n=st.integers(1, 50))
def test_table_6_is_the_forward_pass_of_one_block(d: int, d_ff: int, n: int) -> None:
    """Multi-head attention of one dense block is Table 6's Original column; so is CoLA's attention its consistent one.

    Not CoLA's feed-forward: here gate and up share one A, which Table 6 counts twice.
    """
    rows = {c.name: c for c in table6(Sizes(n=n, d=d, r=d // 4, d_ff=d_ff)).components}
    shape = {"d_model": d, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "d_ff": d_ff, "seq_len": n}
    dense, cola = (_forward(shape | {"linear": linear}) for linear in ("dense", "cola"))
    assert dense["q"] + dense["k"] + dense["v"] == rows["attention Q, K, V"].dense_forward
    assert dense["attention_product"] == rows["attention product"].dense_forward
    assert dense["o"] == rows["attention projection"].dense_forward
    assert dense["gate_up"] + dense["down"] == rows["feed-forward"].dense_forward
    assert cola["q"] + cola["k"] + cola["v"] == rows["attention Q, K, V"].cola_forward
    assert cola["o"] == rows["attention projection"].cola_forward


def _forward(model: dict[str, object]) -> dict[str, int]:
    config = RunConfig(model=ModelConfig.model_validate(model))
    config = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": 1})})
    return {c.name: c.forward for c in step_flops(config).components}
