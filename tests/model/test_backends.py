"""The attention backends agree with each other and with the slow reference.

Tolerance: float64 throughout; the online softmax rescales sums once per tile, which costs a few 2.2e-16 each, so 1e-12
is some thousand roundings.
"""

import importlib.util
import inspect
import math
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from colakit.build import deterministic as exactly
from colakit.model import backends
from colakit.model.backends import attention_backend, flash, reference, sdpa
from colakit.model.documents import Documents
from colakit.model.lm import LM
from tests.model.test_documents import starts_of
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
    with pytest.raises(ImportError, match="flash-attn is not installed"):
        attention_backend("flash")
    config = tiny_config()
    with pytest.raises(ImportError, match="flash-attn is not installed"):
        LM(type(config)(**{**vars(config), "attention": "flash"}))


@pytest.mark.skipif(not HAS_FLASH, reason="flash-attn is not installed")
def test_flash_is_chosen_by_name() -> None:
    assert attention_backend("flash") is flash


# Documents that do not attend to each other


DOCUMENTS = Documents.of(starts_of((1, 3, 2, 1), (7,)))


def naive_documents(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The slow reference over DOCUMENTS, one after another."""
    rows = []
    for *row, lengths in zip(q, k, v, DOCUMENTS.lengths, strict=True):
        parts = zip(*(torch.split(x, lengths, dim=1) for x in row), strict=True)
        rows.append(torch.cat([ref.causal_attention(*part) for part in parts], dim=1))
    return torch.stack(rows)


def naive_varlen(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int) -> Tensor:
    """What a varlen kernel does: q [N, H, E], k and v [N, K, E], cut at `bounds`."""
    assert bounds.dtype == torch.int32
    assert longest == bounds.diff().max()
    spans = zip(*(torch.tensor_split(x.transpose(0, 1), bounds[1:-1].tolist(), dim=1) for x in (q, k, v)), strict=True)
    return torch.cat([sdpa(*(x[None] for x in span))[0] for span in spans], dim=1).transpose(0, 1)


@pytest.mark.parametrize("kv_heads", [1, 3, 6])
@pytest.mark.parametrize("attend", [sdpa, reference, partial(reference, block_q=3, block_k=2)])
def test_a_backend_keeps_documents_apart(attend: Callable[..., Tensor], kv_heads: int) -> None:
    inputs = qkv(7, kv_heads=kv_heads)
    torch.testing.assert_close(attend(*inputs, 0.0, DOCUMENTS), naive_documents(*inputs), **TIGHT)


def test_large_scores_of_other_documents_leave_nothing_in_the_reference() -> None:
    """A row gathers from tiles that are hidden whole, and forgets it: exactly, whatever the scores are."""
    inputs = [30.0 * t.requires_grad_() for t in qkv(7)]
    out = reference(*inputs, 0.0, DOCUMENTS, block_q=2, block_k=1)
    torch.testing.assert_close(out, sdpa(*inputs, 0.0, DOCUMENTS), rtol=1e-12, atol=1e-10)
    gradients = torch.autograd.grad(out.square().sum(), inputs)
    expected = torch.autograd.grad(sdpa(*inputs, 0.0, DOCUMENTS).square().sum(), inputs)
    for own, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("attend", [sdpa, reference])
def test_dropout_within_documents_keeps_the_mean(attend: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    draws, inputs = 3000, [t[:1] for t in qkv(5)]
    documents = Documents.of(starts_of((2, 3)).expand(draws, 5))
    many = attend(*(t.expand(draws, *t.shape[1:]) for t in inputs), 0.3, documents)
    expected = attend(*inputs, 0.0, Documents.of(starts_of((2, 3))))[0]
    assert bool(((many.mean(dim=0) - expected).abs() <= 5.0 * many.std(dim=0) / math.sqrt(draws) + 1e-12).all())
    assert float(many.std(dim=0).min()) > 0.0


def test_flash_gives_its_kernel_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in of flash_attn_varlen_func's signature; the kernel itself is tests/gpu's."""

    seen: list[bool] = []

    def varlen(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        *,
        deterministic: bool = False,
    ) -> Tensor:
        assert causal
        seen.append(deterministic)
        assert (dropout_p, max_seqlen_q) == (0.0, max_seqlen_k)
        assert q.dtype == torch.bfloat16
        assert cu_seqlens_q is cu_seqlens_k
        return naive_varlen(q, k, v, cu_seqlens_q, max_seqlen_q)

    package = SimpleNamespace(flash_attn_func=None, flash_attn_varlen_func=varlen)
    monkeypatch.setitem(sys.modules, "flash_attn", package)  # type: ignore[arg-type]
    with exactly(True):
        flash(*qkv(7), 0.0, DOCUMENTS)
    out = flash(*qkv(7), 0.0, DOCUMENTS)
    assert seen == [True, False], "in its backward pass, where that is asked for"
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, naive_documents(*qkv(7)), rtol=0.0, atol=0.1)  # bfloat16, of values up to 6


@pytest.mark.parametrize("shares_heads", [True, False])
def test_varlen_attn_gets_the_bounds_and_repeated_heads_where_it_shares_none(
    shares_heads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins of torch's signatures, with `enable_gqa` and before it."""

    def varlen(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Tensor:
        assert window_size == (-1, 0)  # causal
        assert shares_heads or key.shape[1] == query.shape[1]
        assert (cu_seq_q is cu_seq_k, max_q) == (True, max_k)
        return naive_varlen(query, key, value, cu_seq_q, max_q)

    def sharing(
        *args: Any, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False
    ) -> Tensor:  # Any: as `varlen`
        assert enable_gqa == (args[0].shape[1] != args[1].shape[1])
        return varlen(*args, window_size=window_size)

    monkeypatch.setattr(backends, "_torch_varlen", lambda: sharing if shares_heads else varlen)
    for inputs in (qkv(7), qkv(7, kv_heads=6)):
        torch.testing.assert_close(backends._varlen(*inputs, DOCUMENTS), naive_documents(*inputs), **TIGHT)


def test_the_installed_varlen_attn_takes_what_it_is_given() -> None:
    """Shapes and arguments, forward and backward, on the device that computes nothing."""
    varlen = backends._torch_varlen()
    assert varlen is not None
    assert "enable_gqa" in inspect.signature(varlen).parameters
    inputs = [t.to("meta", torch.bfloat16).requires_grad_() for t in qkv(7, width=8)]
    out = backends._varlen(*inputs, DOCUMENTS.to("meta"))
    assert (out.shape, out.dtype) == (inputs[0].shape, torch.bfloat16)
    gradients = torch.autograd.grad(out.float().sum(), inputs)
    assert [g.shape for g in gradients] == [t.shape for t in inputs]


@pytest.mark.parametrize(
    "module", [None, SimpleNamespace(varlen_attn=lambda q, k, v, bounds_q, bounds_k, q_max, k_max, is_causal: q)]
)
def test_a_varlen_attn_that_is_absent_or_too_old_is_not_used(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    assert backends._torch_varlen.__wrapped__() is None
