"""What `state_dict` publishes and `load_state_dict` takes: names, shapes, order, round trips."""

import copy
import math
import re

import pytest
import torch
from torch import nn

from colakit.model.config import LMConfig
from colakit.model.lm import LM
from tests.model.tiny import PRESETS, tiny_config, tiny_model, tiny_tokens
from tests.oracles import reference as ref

KINDS = {
    "original": "dense",
    "cola": "cola",
    "cola-smollm2": "cola",
    "cola-smollm2-muon": "cola",
    "cola-fan": "fan",
    "cola-fan-muon": "fan",
    "cola-fan-dropout": "fan",
    "cola-fan-dropout-muon": "fan",
    "cola-m": "cola",
    "cola-fan-atf": "atf",
    "refined": "fan",
    "refined-tied": "fan-tied",
    "smollm2-stages": "fan",
}


def expected_shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes at the tiny size: D 48, kv width 16, d_ff 44, rank 12 and 11, V 67, int(48·0.15) = 7."""

    def cola(name: str, d_out: int, rank: int, d_in: int) -> dict[str, tuple[int, ...]]:
        if kind == "dense":
            return {f"{name}.weight": (d_out, d_in)}
        return {f"{name}.a": (rank, d_in), f"{name}.b": (d_out, rank), f"{name}.bias": (d_out,)}

    def fan(name: str, d_out: int, p: int) -> dict[str, tuple[int, ...]]:
        return {
            f"{name}.a_p": (12, 48),
            f"{name}.a_np": (12, 48),
            f"{name}.b_p": (p, 12),
            f"{name}.b_np": (d_out - 2 * p, 12),
            f"{name}.bias_p": (p,),
            f"{name}.bias_np": (d_out - 2 * p,),
        }

    shapes: dict[str, tuple[int, ...]] = {"tok_embed.weight": (67, 48), "norm.weight": (48,)}
    for i in range(3):
        block: dict[str, tuple[int, ...]] = {"mlp_norm.weight": (48,)}
        if i == 0:
            block["attention_norm.weight"] = (48,)
        for name, width, p in (("q_proj", 48, 7), ("k_proj", 16, 2), ("v_proj", 16, 2)):
            full = f"attention.{name}"
            block |= fan(full, width, p) if kind.startswith("fan") else cola(full, width, 12, 48)
        block |= {f"attention.{n}_norm.weight": (8,) for n in "qkv"}
        if kind == "atf":
            block |= {
                "attention.features.w_p": (7, 48),
                "attention.features.w_n": (34, 48),
                "attention.features.bias": (34,),
            }
        block |= cola("attention.o_proj", 48, 12, 48)
        block |= cola("mlp.gate_up_proj", 88, 12, 48) | cola("mlp.down_proj", 48, 11, 44)
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    if kind != "fan-tied":
        shapes |= cola("lm_head", 67, 12, 48)
    return shapes


@pytest.mark.parametrize("preset", PRESETS)
def test_the_state_dict_has_exactly_the_public_names(preset: str) -> None:
    shapes = {name: tuple(t.shape) for name, t in LM(tiny_config(preset)).state_dict().items()}
    assert shapes == expected_shapes(KINDS[preset])


@pytest.mark.parametrize(
    ("norm", "own"),
    [
        ("pre", {"attention_norm.weight", "mlp_norm.weight"}),
        ("post", {"attention_norm.weight", "mlp_norm.weight"}),
        ("listing", {"mlp_norm.weight", "post_mlp_norm.weight", "gated_residual.gate"}),
    ],
)
def test_a_block_holds_only_the_norms_its_placement_uses(norm: str, own: set[str]) -> None:
    state = LM(tiny_config("cola-smollm2", f"norm={norm}")).state_dict()
    for i in range(3):
        names = {n.removeprefix(f"blocks.{i}.") for n in state if n.startswith(f"blocks.{i}.")}
        outside = {n for n in names if "_proj" not in n and not n.startswith("attention.")}
        assert outside == own
        assert ("attention.q_norm.weight" in names) == (norm == "listing")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_published_numbers_are_all_parameters_once(preset: str) -> None:
    model = LM(tiny_config(preset))
    assert sum(t.numel() for t in model.state_dict().values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_state_dict_round_trip_is_bitwise(preset: str) -> None:
    config = tiny_config(preset)
    source, target = tiny_model(config, seed=1), tiny_model(config, seed=2)
    saved = {n: t.clone() for n, t in source.state_dict().items()}
    before = list(saved)
    missing, unexpected = target.load_state_dict(saved)
    assert (missing, unexpected) == ([], [])
    assert list(saved) == before  # the caller's dictionary is left as it was
    for (name, p), (other, q) in zip(source.named_parameters(), target.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(p, q), name
    tokens = tiny_tokens(config)
    assert torch.equal(source.eval()(tokens), target.eval()(tokens))


@pytest.mark.parametrize("preset", ["original", "cola", "cola-fan"])
def test_loading_copies_and_shares_nothing(preset: str) -> None:
    config = tiny_config(preset)
    source, target = tiny_model(config, seed=1), tiny_model(config, seed=2)
    target.load_state_dict(source.state_dict())
    with torch.no_grad():
        for p in source.parameters():
            p.zero_()
    assert all(bool(p.any()) for p in target.parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_strict_load_reports_any_missing_key(preset: str) -> None:
    """Each key in turn: an incomplete projection must not load in part and in silence."""
    model = LM(tiny_config(preset))
    state = model.state_dict()
    for name in [n for n in state if not n.startswith(("blocks.1.", "blocks.2."))]:
        incomplete = {n: t for n, t in state.items() if n != name}
        with pytest.raises(RuntimeError, match=rf"Missing key.*{re.escape(name)}\b"):
            model.load_state_dict(incomplete)


@pytest.mark.parametrize("extra", ["blocks.0.attention.q_proj.c", "blocks.3.mlp.down_proj.a", "lm_head.weight"])
def test_a_strict_load_reports_an_unexpected_key(extra: str) -> None:
    model = LM(tiny_config("cola-smollm2"))
    with pytest.raises(RuntimeError, match=f'Unexpected key.*"{extra}"'):
        model.load_state_dict(model.state_dict() | {extra: torch.zeros(1)})


@pytest.mark.parametrize("name", ["blocks.0.attention.k_proj.b", "blocks.0.attention.q_proj.a", "lm_head.bias"])
def test_a_strict_load_refuses_a_wrong_shape(name: str) -> None:
    model = LM(tiny_config("cola-smollm2"))
    state = model.state_dict()
    with pytest.raises(RuntimeError, match=f"size mismatch for {re.escape(name)}"):
        model.load_state_dict(state | {name: torch.cat([state[name], state[name][:1]])})


def test_a_row_moved_between_stacked_projections_is_refused() -> None:
    """Q with a row too many and K with one too few join to the right shape, and would shift every boundary."""
    model = LM(tiny_config("cola-smollm2"))
    state = model.state_dict()
    q, k = "blocks.0.attention.q_proj.a", "blocks.0.attention.k_proj.a"
    moved = state | {q: torch.cat([state[q], state[k][:1]]), k: state[k][1:]}
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(moved)


@pytest.mark.parametrize("preset", ["original", "cola-smollm2", "cola-fan", "cola-fan-atf"])
@pytest.mark.parametrize(("name", "index"), [("q_proj", 0), ("k_proj", 1), ("v_proj", 2)])
def test_the_published_tensors_of_q_are_those_of_q(preset: str, name: str, index: int) -> None:
    model = tiny_model(tiny_config(preset))
    attention = model.blocks[1].attention
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = attention.qkv(x)[index]
    p = ref.sub(model.state_dict(), f"blocks.1.attention.{name}")
    by_hand = ref.cola_fan if "a_p" in p else (lambda v, p: ref.cola(v, **p)) if "a" in p else None
    expected = torch.stack([by_hand(v, p) if by_hand else ref.dense(v, p["weight"]) for v in x])
    torch.testing.assert_close(own, expected, rtol=0.0, atol=1e-12)


def test_gate_comes_before_up_and_a_tied_head_is_the_embedding() -> None:
    model = tiny_model(tiny_config("refined-tied")).eval()
    hidden = torch.randn(5, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = hidden @ model.state_dict()["tok_embed.weight"].T * (4 / math.sqrt(48))
    torch.testing.assert_close(model.head(hidden), expected)
    assert model.output is None


def test_a_model_inside_another_publishes_under_its_prefix() -> None:
    """`transformers` wraps a model this way."""

    class Outer(nn.Module):
        def __init__(self, config: LMConfig) -> None:
            super().__init__()
            self.model = LM(config)

    config = tiny_config("cola-fan")
    outer, plain = Outer(config), LM(config)
    plain.init_weights(3)
    assert set(outer.state_dict()) == {f"model.{n}" for n in plain.state_dict()}
    outer.load_state_dict({f"model.{n}": t for n, t in plain.state_dict().items()})
    for p, q in zip(outer.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_copied_model_publishes_its_own_tensors() -> None:
    model = tiny_model(tiny_config("cola-smollm2"))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert not any(bool(t.any()) for t in other.state_dict().values())
    assert any(bool(t.any()) for t in model.state_dict().values())
