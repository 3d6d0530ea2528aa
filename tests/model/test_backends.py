"""The attention backends agree with each other and with the slow reference.

Tolerance: float64 throughout; the online softmax rescales sums once per tile, which costs a few 2.2e-16 each, so 1e-12
is some thousand roundings.
"""

import importlib.util
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from colakit.model.backends import attention_backend, flash, reference, sdpa
from colakit.model.lm import LM
from tests.model.tiny import tiny_config
from tests.oracles import reference as ref

TIGHT = {"rtol": 0.0, "atol": 1e-12}
HAS_FLASH = importlib.util.find_spec("flash_attn") is not None


def qkv(time: int, *, batch: int = 2, heads: int = 6, kv_heads: int = 3, width: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, n, time, width) for n in (heads, kv_heads, kv_heads)]
    return [2.0 * torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.stack([ref.causal_attention(*sequence) for sequence in zip(q, k, v, strict=True)])


@pytest.mark.parametrize("time", [1, 2, 7])
@pytest.mark.parametrize("attend", [sdpa, reference, partial(reference, block_q=3, block_k=2)])
def test_a_backend_is_causal_softmax_attention(attend: Callable[..., Tensor], time: int) -> None:
    torch.testing.assert_close(attend(*qkv(time)), naive(*qkv(time)), **TIGHT)


@pytest.mark.parametrize("time", [1, 5, 12, 13])
@pytest.mark.parametrize(("block_q", "block_k"), [(1, 1), (4, 4), (4, 3), (3, 4), (5, 2), (2, 7), (64, 64), (13, 1)])
def test_the_tile_size_changes_nothing(time: int, block_q: int, block_k: int) -> None:
    own, other = qkv(time), qkv(time)
    for t in own + other:
        t.requires_grad_()
    tiled, fused = reference(*own, block_q=block_q, block_k=block_k), sdpa(*other)
    torch.testing.assert_close(tiled, fused, **TIGHT)
    weights = torch.randn(tiled.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (tiled * weights).sum().backward()
    (fused * weights).sum().backward()
    for a, b in zip(own, other, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0.0, atol=1e-11)


def test_large_scores_do_not_overflow_the_reference() -> None:
    q, k, v = (100.0 * t for t in qkv(7))
    out = reference(q, k, v, block_q=2, block_k=3)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out, sdpa(q, k, v), rtol=1e-12, atol=1e-10)


def test_algorithm_4_as_printed_gives_nan() -> None:
    """Erratum: l starts at −∞ in print, and the first update multiplies it by exp(−∞) = 0. From 0 it is right."""
    q, k, v = (t[0, 0] for t in qkv(5))
    printed = ref.algorithm_4(q, k, v, block=2, l_start=-math.inf)
    assert torch.isnan(printed).all()
    mended = ref.algorithm_4(q, k, v, block=2, l_start=0.0)
    torch.testing.assert_close(mended, torch.softmax(q @ k.T / 2.0, dim=-1) @ v, **TIGHT)


def test_dropout_of_the_reference_keeps_the_mean_and_does_not_renormalise() -> None:
    """Dropped weights are zeroed and the rest divided by 1 − p, while the softmax sum stays that of all: unbiased."""
    torch.manual_seed(0)
    q, k, v = qkv(5, batch=1)
    draws, p = 6000, 0.3
    many = reference(*(t.expand(draws, *t.shape[1:]) for t in (q, k, v)), p, block_q=2, block_k=2)
    error = (many.mean(dim=0) - reference(q, k, v)[0]).abs()
    assert bool((error <= 5.0 * many.std(dim=0) / math.sqrt(draws) + 1e-12).all())
    # The first position has one weight, 1: its output is v / (1 − p) or 0.
    first = many[:, :, 0] / v.repeat_interleave(2, dim=1)[:, :, 0]
    kept = first.abs() > 1e-9
    torch.testing.assert_close(first[kept], torch.full_like(first[kept], 1 / (1 - p)), **TIGHT)
    assert abs(float(kept.double().mean()) - (1 - p)) < 0.02


@pytest.mark.parametrize("attend", [sdpa, reference])
def test_no_dropout_is_no_randomness(attend: Callable[..., Tensor]) -> None:
    before = torch.get_rng_state()
    attend(*qkv(5), 0.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_backend_is_chosen_by_name() -> None:
    assert attention_backend("sdpa") is sdpa
    assert attention_backend("reference") is reference


@pytest.mark.skipif(HAS_FLASH, reason="flash-attn is installed")
def test_flash_without_flash_attn_raises_at_construction() -> None:
    with pytest.raises(ImportError, match="flash_attn"):
        attention_backend("flash")
    config = tiny_config()
    with pytest.raises(ImportError, match="flash_attn"):
        LM(type(config)(**{**vars(config), "attention": "flash"}))


@pytest.mark.skipif(not HAS_FLASH, reason="flash-attn is not installed")
def test_flash_is_chosen_by_name() -> None:
    assert attention_backend("flash") is flash
