"""Attention, blocks and whole models against the slow references: outputs, and gradients of every published tensor.

Tolerance: both sides are float64 and take their cosines from tables rounded to float32 in the same way, so they differ
by the order of sums alone, some 1e-14 per layer, times condition numbers below 1e3 over three blocks. 1e-10 stands far
above that and below the 1e-8 of the norms' eps, so that a lost eps fails too.
"""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor

from colakit.model.config import LMConfig
from tests.model.tiny import (
    PRESETS,
    published_gradients,
    published_leaves,
    tiny_config,
    tiny_model,
    tiny_tokens,
    without_dropout,
)
from tests.oracles import reference as ref

TIGHT = {"rtol": 0.0, "atol": 1e-10}
B, T = 2, 5


def stream(config: LMConfig, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, T, config.d_model, generator=generator, dtype=torch.float64)


def same_gradients(own: dict[str, Tensor], oracle: dict[str, Tensor]) -> None:
    assert own.keys() == oracle.keys()
    for name, gradient in own.items():
        expected = oracle[name].grad
        assert expected is not None, name
        torch.testing.assert_close(gradient, expected, **TIGHT, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_the_paper_s_model(preset: str) -> None:
    config = replace(without_dropout(tiny_config(preset)), n_layers=2)
    model, tokens = tiny_model(config), tiny_tokens(config, batch=B, time=T)
    logits = model(tokens)
    leaves = published_leaves(model)
    expected = ref.lm(tokens, leaves, config)
    torch.testing.assert_close(logits, expected, **TIGHT)

    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    same_gradients(published_gradients(model), leaves)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("qkv_norm", ["rms", "l2", "none"])
@pytest.mark.parametrize("norm", ["pre", "post", "hybrid", "listing"])
def test_every_norm_placement_follows_its_equations(norm: str, qkv_norm: str, first: bool) -> None:
    """Block 0 is the first; block 1 any other. Hybrid without QKV norm is refused by the rules, not by the block."""
    base = tiny_config("cola-smollm2", "n_layers=2", f"norm={norm}")
    config = replace(base, qkv_norm=qkv_norm)  # type: ignore[arg-type]
    model = tiny_model(config)
    depth = 0 if first else 1
    x, y = stream(config).requires_grad_(), stream(config).requires_grad_()
    leaves = published_leaves(model)
    out = model.blocks[depth](x)
    expected = ref.block(y, ref.sub(leaves, f"blocks.{depth}"), config, first=first)
    torch.testing.assert_close(out, expected, **TIGHT)

    weights = stream(config, seed=9)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, **TIGHT)
    for p in model.parameters():  # the other block and the embedding took no part
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    own = {n: g for n, g in published_gradients(model).items() if n.startswith(f"blocks.{depth}.")}
    same_gradients(own, {n: t for n, t in leaves.items() if n in own})


@pytest.mark.parametrize("n_kv_heads", [1, 2, 3, 6])
@pytest.mark.parametrize("attention", ["sdpa", "reference"])
def test_attention_shares_key_heads_among_neighbouring_query_heads(attention: str, n_kv_heads: int) -> None:
    sets = (f"n_kv_heads={n_kv_heads}", "n_layers=1", "rank=5")  # rank: below the width of one key head
    config = replace(tiny_config("cola-fan", *sets, "fan_ratio=0.3"), attention=attention)  # type: ignore[arg-type]
    model = tiny_model(without_dropout(config))
    x = stream(config)
    expected = ref.mha(x, ref.sub(model.state_dict(), "blocks.0.attention"), config)
    torch.testing.assert_close(model.blocks[0].attention(x), expected, **TIGHT)


def test_the_placements_of_the_oracle_differ() -> None:
    """Else agreement with it would prove nothing."""
    config = tiny_config("cola-smollm2", "n_layers=1", "norm=listing")
    leaves = dict(ref.sub(tiny_model(config).state_dict(), "blocks.0"))
    leaves["attention_norm.weight"] = leaves["post_mlp_norm.weight"]
    outs = [
        ref.block(stream(config), leaves, replace(config, norm=norm), first=first)  # type: ignore[arg-type]
        for norm, first in [("pre", False), ("post", False), ("hybrid", False), ("listing", False)]
    ]
    for one, other in combinations(outs, 2):
        assert float((one - other).abs().max()) > 0.1
