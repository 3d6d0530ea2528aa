"""On CUDA: flash-attn, SDPA and the reference agree. Run with ``-m gpu``.

Tolerance: flash-attn computes in bfloat16 (3 digits: 2⁻⁹ relative per rounding, of values up to about 3), SDPA in the
input's dtype.
"""

import pytest
import torch
from torch import Tensor

from colakit.model.backends import attention_backend, reference, sdpa
from colakit.model.lm import LM
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
