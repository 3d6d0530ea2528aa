"""On CUDA: flash-attn, SDPA and the reference agree. Run with ``-m gpu``.

Tolerance: flash-attn computes in bfloat16 (3 digits: 2⁻⁹ relative per rounding, of values up to about 3), SDPA in the
input's dtype.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from colakit.model import backends
from colakit.model.backends import attention_backend, reference, sdpa
from colakit.model.documents import Documents
from colakit.model.lm import LM
from tests.model.test_documents import starts_of
from tests.model.tiny import PRESETS, tiny_config, tiny_tokens, without_dropout

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def qkv(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, n, 130, 64) for n in (6, 3, 3)]
    return [torch.randn(s, generator=generator).to("cuda", dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_flash_agrees_with_sdpa(dtype: torch.dtype) -> None:
    pytest.importorskip("flash_attn")
    own, other = qkv(dtype), qkv(dtype)
    out, expected = attention_backend("flash")(*own, 0.0), sdpa(*other)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
    out.float().square().sum().backward()
    expected.float().square().sum().backward()
    for a, b in zip(own, other, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=5e-2, atol=5e-2)


def test_sdpa_agrees_with_the_reference() -> None:
    q, k, v = qkv(torch.float32)
    torch.testing.assert_close(sdpa(q, k, v), reference(q, k, v), rtol=1e-3, atol=1e-3)  # TF32 or not


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_computes_what_it_does_on_the_cpu(preset: str) -> None:
    config = without_dropout(tiny_config(preset))
    model = LM(config)
    model.init_weights(0)
    tokens = tiny_tokens(config)
    expected = model(tokens)
    torch.testing.assert_close(model.cuda()(tokens.cuda()).cpu(), expected, rtol=1e-2, atol=1e-2)


# Documents that do not attend to each other

ROWS = ((1, 64, 60, 4, 1), (130,))


@contextmanager
def no_waiting() -> Iterator[None]:
    """An operation for which the host waits is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("backend", ["flash", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_varlen_kernels_agree_with_the_mask_of_the_reference_in_float32(dtype: torch.dtype, backend: str) -> None:
    if backend == "flash":
        pytest.importorskip("flash_attn")
    documents = Documents.of(starts_of(*ROWS)).to("cuda")
    own = qkv(dtype)
    other = [t.detach().float().requires_grad_() for t in own]
    if backend == "sdpa":
        assert backends._can_use_varlen(*own)
    out = attention_backend(backend)(*own, 0.0, documents)  # type: ignore[arg-type]
    expected = reference(*other, 0.0, documents)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)
    out.float().square().sum().backward()
    expected.square().sum().backward()
    for a, b in zip(own, other, strict=True):
        torch.testing.assert_close(a.grad.float(), b.grad, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("backend", ["flash", "sdpa"])
def test_dropout_stays_within_documents(backend: str) -> None:
    if backend == "flash":
        pytest.importorskip("flash_attn")
    documents = Documents.of(starts_of(*ROWS)).to("cuda")
    q, k, v = (t.detach() for t in qkv(torch.bfloat16))
    outs = []
    for scale in (1.0, 2.0):  # of the first row's first two documents
        torch.manual_seed(0)
        v_ = v.clone()
        v_[0, :, :65] *= scale
        outs.append(attention_backend(backend)(q, k, v_, 0.5, documents))  # type: ignore[arg-type]
    assert torch.equal(outs[0][0, :, 65:], outs[1][0, :, 65:])
    assert torch.equal(outs[0][1], outs[1][1])
    assert not torch.equal(outs[0][0, :, :65], outs[1][0, :, :65])


def test_float32_agrees_with_the_reference_document_by_document() -> None:
    documents = Documents.of(starts_of(*ROWS)).to("cuda")
    q, k, v = qkv(torch.float32)
    assert not backends._can_use_varlen(q, k, v)
    out = sdpa(q, k, v, 0.0, documents)
    torch.testing.assert_close(out, reference(q, k, v, 0.0, documents), rtol=1e-3, atol=1e-3)  # TF32 or not


@pytest.mark.parametrize("remat", ["none", "cola_m"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_isolated_documents_in_autocast_are_what_they_are_on_the_cpu(dtype: torch.dtype, remat: str) -> None:
    config = replace(without_dropout(tiny_config("cola-fan")), remat=remat)  # type: ignore[arg-type]
    model = LM(config)
    model.init_weights(0)
    tokens, documents = tiny_tokens(config, batch=2), Documents.of(starts_of((1, 5, 3), (9,)))
    expected = model(tokens, documents)
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        out = model.cuda()(tokens.cuda(), documents.to("cuda"))
    out.float().square().mean().backward()
    tolerance = 1e-2 if dtype == torch.float32 else 1e-1
    torch.testing.assert_close(out.float().cpu(), expected, rtol=tolerance, atol=tolerance)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_host_waits_for_no_document(dtype: torch.dtype) -> None:
    model = LM(without_dropout(tiny_config("cola-fan")))
    model.init_weights(0)
    model.cuda()
    tokens = tiny_tokens(model.config, batch=2).cuda()
    documents = Documents.of(starts_of((1, 5, 3), (9,))).to("cuda")
    with no_waiting():
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            out = model.hidden(tokens, documents)
        out.float().sum().backward()
