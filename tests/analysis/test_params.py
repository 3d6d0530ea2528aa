"""Parameter counts: small ones by hand with every size different, and the paper's presets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colakit.analysis.params import COMPONENTS, count_params, non_embedding_params, total_params
from colakit.config.load import resolve
from colakit.config.presets import preset_names
from colakit.config.schema import ModelConfig

# head_dim 4, K and V of width 4; ranks 12 // 4 = 3 and 20 // 4 = 5
SMALL = ModelConfig(d_model=12, n_layers=2, n_heads=3, n_kv_heads=1, d_ff=20, vocab_size=50, seq_len=7, fan_ratio=0.25)

COLA = {
    "embedding": 50 * 12,
    "q": 2 * (3 * 12 + 12 * 3 + 12),
    "k": 2 * (3 * 12 + 4 * 3 + 4),
    "v": 2 * (3 * 12 + 4 * 3 + 4),
    "o": 2 * (3 * 12 + 12 * 3 + 12),
    "fan": 0,
    "gate_up": 2 * (3 * 12 + 40 * 3 + 40),
    "down": 2 * (5 * 20 + 12 * 5 + 12),
    "norms": (2 + 1 + 1) * 12 + 2 * 3 * 4,  # 2 in the first block, 1 in the second, the final one; Q, K and V per head
    "gates": 0,
    "head": 3 * 12 + 50 * 3 + 50,
}

BY_HAND = [
    ({}, {}),
    (
        {"linear": "dense"},
        {
            "q": 2 * 144,
            "k": 2 * 48,
            "v": 2 * 48,
            "o": 2 * 144,
            "gate_up": 2 * 480,
            "down": 2 * 240,
            "head": 600,
        },
    ),
    (
        {"rank": 2},
        {
            "q": 2 * (24 + 24 + 12),
            "k": 2 * (24 + 8 + 4),
            "v": 2 * (24 + 8 + 4),
            "o": 2 * (24 + 24 + 12),
            "gate_up": 2 * (24 + 80 + 40),
            "down": 2 * (40 + 24 + 12),
            "head": 24 + 100 + 50,
        },
    ),
    # q: 3 periodic and 6 other features; k and v: 1 and 2
    ({"fan": "qkv"}, {"q": 2 * (2 * 36 + 9 * 3 + 9), "k": 2 * (2 * 36 + 3 * 3 + 3), "v": 2 * (2 * 36 + 3 * 3 + 3)}),
    ({"fan": "qkv", "fan_ratio": 0.0}, {}),
    ({"fan": "input"}, {"fan": 2 * (3 * 12 + 6 * 12 + 6)}),
    ({"tie_embeddings": True}, {"head": 0}),
    ({"norm": "pre"}, {"norms": 5 * 12}),
    ({"norm": "post"}, {"norms": 5 * 12}),
    ({"norm": "pre", "qkv_norm": "rms"}, {"norms": 5 * 12 + 24}),
    ({"norm": "listing"}, {"norms": 5 * 12 + 24, "gates": 2 * 12}),
    ({"qkv_norm": "l2"}, {"norms": 4 * 12}),
]


@pytest.mark.parametrize(("changes", "counts"), BY_HAND, ids=str)
def test_small_models_counted_by_hand(changes: dict[str, object], counts: dict[str, int]) -> None:
    model = SMALL.model_copy(update=changes)
    expected = COLA | counts
    assert {count.name: count.params for count in count_params(model)} == expected
    assert total_params(model) == sum(expected.values())
    assert non_embedding_params(model) == sum(expected.values()) - 600


def test_components_come_in_their_order() -> None:
    assert tuple(count.name for count in count_params(SMALL)) == COMPONENTS


# PAPER.md §5, millions before norms and gates
BEFORE_NORMS = {
    "original": 234.5,
    "cola": 139.1,
    "cola-smollm2": 88.4,
    "cola-smollm2-muon": 88.4,
    "cola-m": 88.4,
    "cola-fan": 93.1,
    "cola-fan-muon": 93.1,
    "cola-fan-dropout": 93.1,
    "cola-fan-dropout-muon": 93.1,
    "refined": 93.1,
    "cola-fan-atf": 94.4,
    "refined-tied": 83.5,
    "smollm2-stages": 93.1,
}


@pytest.mark.parametrize("preset", preset_names())
def test_the_presets_have_the_stated_totals(preset: str) -> None:
    counts = count_params(resolve(preset).config.model)
    total = sum(count.params for count in counts if count.name not in {"norms", "gates"})
    assert round(total / 1e6, 1) == BEFORE_NORMS[preset]


def test_fan_adds_what_the_paper_says() -> None:
    plain, fan, atf = (total_params(resolve(p).config.model) for p in ("cola-smollm2", "cola-fan", "cola-fan-atf"))
    assert round((fan - plain) / 1e6, 2) == 4.78
    assert round((atf - plain) / 1e6, 2) == 6.02


@given(n_layers=st.integers(1, 6), norm=st.sampled_from(["pre", "post", "hybrid", "listing"]))
def test_every_block_after_the_first_adds_the_same(n_layers: int, norm: str) -> None:
    totals = [total_params(SMALL.model_copy(update={"n_layers": n_layers + i, "norm": norm})) for i in range(3)]
    assert totals[2] - totals[1] == totals[1] - totals[0] > 0
