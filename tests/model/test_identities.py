"""Identities between variants of a model, and what each choice must change."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from colakit.model.config import LMConfig
from colakit.model.linear import FAN, CoLA, CoLAFAN, Dense, fan_features, low_rank_projections
from colakit.model.lm import LM
from colakit.model.rope import Rotary
from tests.model.tiny import (
    PRESETS,
    full_config,
    published_leaves,
    tiny_config,
    tiny_model,
    tiny_tokens,
    without_dropout,
)

EXACT = {"rtol": 0.0, "atol": 0.0}
TIGHT = {"rtol": 0.0, "atol": 1e-12}  # float64, sums of under a hundred terms near 1


def test_fan_ratio_0_is_cola() -> None:
    parts = {"q": 6, "k": 4}
    assert type(low_rank_projections(10, parts, 3, fan_ratio=0.0, dropout=0.2)) is CoLA
    assert type(low_rank_projections(10, parts, 3, fan_ratio=0.3, dropout=0.2)) is CoLAFAN

    config = tiny_config("cola-fan", "fan_ratio=0.0")
    fan, cola = tiny_model(config), tiny_model(tiny_config("cola-smollm2"), seed=5)
    assert [type(m) for m in fan.modules()] == [type(m) for m in cola.modules()]
    cola.load_state_dict(fan.state_dict())
    tokens = tiny_tokens(config)
    assert torch.equal(fan(tokens), cola(tokens))


def test_fan_splits_cosine_sine_and_rest() -> None:
    assert fan_features(768, 0.15) == 115
    assert fan_features(384, 0.15) == 57
    layer = CoLAFAN(10, {"q": 14, "k": 9}, 3, fan_ratio=0.25, dropout=0.0).double()
    _fill(layer)
    for out, width in zip(layer(_randn(2, 5, 10)), (14, 9), strict=True):
        p = int(width * 0.25)
        assert out.shape[-1] == width
        cos, sin, rest = out.split([p, p, width - 2 * p], dim=-1)
        torch.testing.assert_close(cos**2 + sin**2, torch.ones_like(cos), **TIGHT)
        assert float(rest.detach().abs().max()) > 1.0  # not a cosine


def test_full_rank_fan_splits_the_same_way() -> None:
    layer = FAN(10, 0.25).double()
    _fill(layer)
    cos, sin, rest = layer(_randn(2, 5, 10)).split([2, 2, 6], dim=-1)
    torch.testing.assert_close(cos**2 + sin**2, torch.ones_like(cos), **TIGHT)
    assert float(rest.detach().abs().max()) > 1.0


@pytest.mark.parametrize("preset", ["original", "cola-smollm2", "cola-fan", "cola-fan-atf"])
def test_shared_key_heads_are_plain_heads_with_equal_weights(preset: str) -> None:
    """Repeating each key and value head for its query heads turns 2 kv heads into 6 and changes no output."""
    shared = without_dropout(tiny_config(preset, "fan_ratio=0.0") if preset == "cola-fan" else tiny_config(preset))
    plain = replace(shared, n_kv_heads=shared.n_heads)
    source, target = tiny_model(shared), tiny_model(plain, seed=3)
    state = {n: t.clone() for n, t in source.state_dict().items()}
    for name in list(state):
        if (".k_proj." in name or ".v_proj." in name) and not name.endswith(".a"):
            heads = state[name].unflatten(0, (shared.n_kv_heads, shared.head_dim))
            state[name] = heads.repeat_interleave(3, dim=0).flatten(0, 1)
    target.load_state_dict(state)
    tokens = tiny_tokens(shared)
    torch.testing.assert_close(source(tokens), target(tokens), **TIGHT)


def test_rope_keeps_norms_and_products_depend_on_distance_alone() -> None:
    rotary = Rotary(8, seq_len=40, theta=50.0)
    angles = torch.outer(torch.arange(40).double(), 50.0 ** (-torch.arange(0, 8, 2).double() / 8))
    rotary.cos, rotary.sin = angles.cos(), angles.sin()  # unrounded, so that the identity is exact
    q, k = _randn(8), _randn(8, seed=1)
    q_at, k_at = (rotary(v.expand(1, 1, 40, 8))[0, 0] for v in (q, k))
    torch.testing.assert_close(q_at.norm(dim=-1), q.norm().expand(40), **TIGHT)
    torch.testing.assert_close(q_at[0], q, **EXACT)
    products = q_at @ k_at.T
    for distance in range(-20, 21):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), **TIGHT)
    assert float((products[0] - products[0, 0]).abs().max()) > 0.1  # and it does depend on distance


def test_rope_is_applied_to_queries_and_keys_and_not_to_values() -> None:
    model = tiny_model(tiny_config("cola-smollm2", "n_layers=1"))
    attention, x = model.blocks[0].attention, _randn(2, 7, 48)
    seen: list[tuple[Tensor, ...]] = []
    inner = attention.attend
    attention.attend = lambda q, k, v, p, d: (seen.append((q, k, v)), inner(q, k, v, p, d))[1]
    with torch.no_grad():
        attention(x)
        attention.rope.forward = lambda x, angles: x
        attention(x)
    (q, k, v), (q_flat, k_flat, v_flat) = seen
    assert torch.equal(q[..., 0, :], q_flat[..., 0, :])  # position 0 is not turned
    assert float((q - q_flat)[..., 1:, :].abs().amax(dim=(0, 1, 3)).min()) > 0.1
    assert float((k - k_flat)[..., 1:, :].abs().amax(dim=(0, 1, 3)).min()) > 0.1
    assert torch.equal(v, v_flat)


def test_q_k_and_v_are_normalised_per_head() -> None:
    seen: list[tuple[Tensor, ...]] = []
    for qkv_norm, size in [("rms", 8**0.5), ("l2", 1.0)]:
        model = tiny_model(tiny_config("cola-smollm2", "n_layers=1", f"qkv_norm={qkv_norm}"), generic=False)
        attention = model.blocks[0].attention
        attention.attend = lambda q, k, v, p, d: (seen.append((q, k, v)), q)[1]
        attention(_randn(2, 7, 48))
        for t in seen[-1]:
            torch.testing.assert_close(t.norm(dim=-1), torch.full(t.shape[:-1], size).double(), rtol=1e-6, atol=0.0)


def test_norm_placements_differ_given_the_same_weights() -> None:
    """A known trap: pre-norm and hybrid branches that compute the same."""
    _all_differ(
        [tiny_config("cola-smollm2", f"norm={n}", "qkv_norm=rms") for n in ("pre", "post", "hybrid", "listing")]
    )


def test_qkv_norms_differ_given_the_same_weights() -> None:
    """A known trap: a QKV-norm switch whose branches compute the same."""
    _all_differ([tiny_config("cola-smollm2", "norm=pre", f"qkv_norm={n}") for n in ("rms", "l2", "none")])


def test_hybrid_treats_only_its_first_block_as_pre_norm() -> None:
    """Eq. 6–7: in block 0 hybrid is pre-norm wiring; from block 1 on it is not."""
    hybrid = tiny_model(tiny_config("cola-smollm2"))
    names = [{n for n, _ in block.named_children() if n.endswith("norm")} for block in hybrid.blocks]
    assert names == [{"attention_norm", "mlp_norm"}, {"mlp_norm"}, {"mlp_norm"}]
    one = [tiny_config("cola-smollm2", "n_layers=1", f"norm={n}", "qkv_norm=rms") for n in ("hybrid", "pre")]
    source, target = tiny_model(one[0]), tiny_model(one[1], seed=4)
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(tiny_tokens(one[0])), target(tiny_tokens(one[0])))


def test_unset_qkv_norm_follows_the_placement() -> None:
    kinds = {n: tiny_config("cola-smollm2", f"norm={n}").qkv_norm for n in ("pre", "post", "hybrid", "listing")}
    assert kinds == {"pre": "none", "post": "none", "hybrid": "rms", "listing": "rms"}


def test_dropout_grows_with_depth_in_cola_fan() -> None:
    """§5.9 and the decision 0.12·(1 + 0.04·depth)."""
    with torch.device("meta"):
        model = LM(full_config("cola-fan-dropout"))
    rates = [block.attention.qkv.dropout.p for block in model.blocks]
    assert rates == pytest.approx([0.12 * (1 + 0.04 * depth) for depth in range(12)])
    assert {block.attention.output_dropout.p for block in model.blocks} == {0.05}
    assert model.final_dropout.p == 0.05


def test_refined_drops_in_cola_fan_alone_and_constantly() -> None:
    for preset in ("refined", "refined-tied"):
        with torch.device("meta"):
            model = LM(full_config(preset))
        assert {block.attention.qkv.dropout.p for block in model.blocks} == {0.09}
        assert {block.attention.output_dropout.p for block in model.blocks} == {0.0}
        assert model.final_dropout.p == 0.0
        assert {m.eps for m in model.modules() if isinstance(m, nn.RMSNorm)} == {1e-5}


def test_post_attention_and_final_dropout_sit_where_they_say() -> None:
    """Dropping everything after the attention leaves the residual alone; everything after the final norm, nothing."""
    config = tiny_config("cola-smollm2", "n_layers=1")
    model = tiny_model(config).train()
    x = _randn(2, 7, 48)
    block = model.blocks[0]
    block.attention.output_dropout.p = 1.0
    torch.testing.assert_close(block(x), x + block.mlp(block.mlp_norm(x)), **TIGHT)
    model.final_dropout.p = 1.0
    assert not model.hidden(tiny_tokens(config)).any()


def test_rank_unset_is_a_quarter_of_each_input_and_set_applies_to_all() -> None:
    for sets, down, other in [((), 11, 12), (("rank=7",), 7, 7)]:
        with torch.device("meta"):
            model = LM(tiny_config("cola-smollm2", *sets))
        ranks = {n.rpartition(".")[2]: m.rank for n, m in model.named_modules() if isinstance(m, CoLA)}
        assert ranks == {"qkv": other, "out": other, "gate_up": other, "down": down, "output": other}


def test_original_is_dense_throughout_and_without_biases() -> None:
    model = LM(tiny_config("original"))
    assert not [m for m in model.modules() if isinstance(m, CoLA | CoLAFAN | FAN)]
    assert isinstance(model.output, Dense)
    assert not [n for n, role in model.param_roles().items() if role.role == "bias"]


@pytest.mark.parametrize("preset", PRESETS)
def test_forward_is_hidden_then_head(preset: str) -> None:
    config = tiny_config(preset)
    model = tiny_model(config).eval()
    tokens = tiny_tokens(config)
    hidden = model.hidden(tokens)
    assert hidden.shape == (4, 9, 48)
    logits = model(tokens)
    assert logits.shape == (4, 9, 67)
    assert torch.equal(model.head(hidden), logits)


def _all_differ(configs: list[LMConfig]) -> None:
    models = [tiny_model(c, seed=i) for i, c in enumerate(configs)]
    weights: dict[str, Tensor] = {}
    for model in models:
        weights |= {n: t for n, t in published_leaves(model).items() if n not in weights}
    tokens = tiny_tokens(configs[0])
    outs = []
    for model in models:
        model.load_state_dict({n: weights[n] for n in model.state_dict()})
        outs.append(model.eval()(tokens))
    for one, other in combinations(outs, 2):
        assert float((one - other).detach().abs().max()) > 1e-3


def _fill(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
