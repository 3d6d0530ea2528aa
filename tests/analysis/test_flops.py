"""FLOPs of a step: small models by hand, and what they grow with."""

from typing import Any

import pytest

from colakit.analysis.flops import step_flops
from colakit.analysis.layers import block_layers
from colakit.config.load import resolve
from colakit.config.schema import ModelConfig, RunConfig
from colakit.records.analysis import FlopRecord

# head_dim 4, K and V of width 4; ranks 12 // 4 = 3 and 20 // 4 = 5; 3 blocks
SMALL = ModelConfig(d_model=12, n_layers=3, n_heads=3, n_kv_heads=1, d_ff=20, vocab_size=50, seq_len=7, fan_ratio=0.25)


def count(batch_size: int = 5, optimizer: str = "adamw", **changes: Any) -> FlopRecord:  # Any: fields of the model
    values = {"optim": {"optimizer": optimizer, "ns_steps": 2}, "train": {"batch_size": batch_size}}
    config = RunConfig.model_validate(values)
    return step_flops(config.model_copy(update={"model": SMALL.model_copy(update=changes)}))


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
    step = count(**changes)
    expected = COLA | flops
    assert {c.name: c.forward for c in step.components} == expected
    assert {c.name: c.training for c in step.components} == {name: 3 * n for name, n in expected.items()}
    assert step.forward == sum(expected.values())
    assert step.model_flops == 3 * step.forward == step.hardware_flops
    assert (step.batch_size, step.seq_len, step.tokens) == (5, 7, 35)
    assert step.model_flops_per_token == step.model_flops // 35


def test_the_causal_product_counts_the_lower_triangle() -> None:
    step = count()
    assert step.causal_attention_product == 3 * 4 * 5 * (1 + 2 + 3 + 4 + 5 + 6 + 7) * 12
    skipped = COLA["attention_product"] - step.causal_attention_product
    assert step.causal_model_flops == step.model_flops - 3 * skipped


def test_a_formula_evaluates_to_its_count() -> None:
    for component in count(fan="qkv").components:
        expression = component.formula.replace("·", "*").replace("×", "*").replace("²", "**2")
        assert eval(expression) == component.forward


def test_flops_grow_with_the_batch_and_newton_schulz_does_not() -> None:
    one, six = (count(batch_size, optimizer="muon") for batch_size in (1, 6))
    assert six.model_flops == 6 * one.model_flops
    assert six.newton_schulz == one.newton_schulz > 0
    assert six.hardware_flops == six.model_flops + six.newton_schulz


def test_newton_schulz_by_hand() -> None:
    """Two iterations; per matrix of sides s ≤ l: X·Xᵀ and the last product 2·s²·l each, the square of X·Xᵀ 2·s³."""
    sides = [(3, 12)] * 3 + [(3, 12), (3, 4), (3, 4)] + [(3, 12), (3, 12)] + [(3, 12), (3, 40)] + [(5, 20), (5, 12)]
    expected = 3 * 2 * sum(4 * s * s * long + 2 * s**3 for s, long in sides)
    assert count(optimizer="muon").newton_schulz == expected
    assert count(optimizer="adamw").newton_schulz == 0


def test_a_token_costs_more_in_a_longer_sequence_by_attention_alone() -> None:
    step = count()
    assert [at.seq_len for at in step.by_seq_len] == [7, 14, 28, 56, 112]
    for at in step.by_seq_len:
        longer = count(batch_size=1, seq_len=at.seq_len)
        product = next(c.training for c in longer.components if c.name == "attention_product")
        assert at.training_flops_per_token == longer.model_flops // at.seq_len
        assert at.attention_product_frac == pytest.approx(product / longer.model_flops)


@pytest.mark.parametrize("preset", ["original", "cola-fan", "refined-tied"])
def test_attention_overtakes_where_it_is_said_to(preset: str) -> None:
    n = step_flops(resolve(preset).config).attention_overtakes_at
    shares = []
    for seq_len in (n - 1, n):
        step = step_flops(resolve(preset, sets=[f"model.seq_len={seq_len}"]).config)
        product = next(c.forward for c in step.components if c.name == "attention_product")
        shares.append(2 * product > step.forward)
    assert shares == [False, True]


def test_recompute_is_not_in_the_model_flops() -> None:
    plain, cola_m = count(), count(remat="cola_m")
    assert cola_m.model_flops == plain.model_flops
    assert cola_m.hardware_flops == plain.hardware_flops + cola_m.recompute
    again = {c.name: c.recompute for c in cola_m.components}
    # All B's but the last one, and the attention product; no A.
    per = PER_BLOCKS
    assert again == COLA | {
        "q": per * 12 * 3,
        "k": per * 4 * 3,
        "v": per * 4 * 3,
        "o": per * 12 * 3,
        "gate_up": per * 40 * 3,
        "down": 0,
        "head": 0,
    }


def test_the_features_of_fan_fill_the_width() -> None:
    """Cosine, sine and the rest: p + p + rest is d_out, whatever the ratio."""
    for ratio in (0.1, 0.25, 0.49):
        layers = {
            layer.name: layer for layer in block_layers(SMALL.model_copy(update={"fan": "qkv", "fan_ratio": ratio}))
        }
        (_, (periodic, _), _, (rest, _)) = layers["q"].matrices
        assert 2 * periodic + rest == 12
