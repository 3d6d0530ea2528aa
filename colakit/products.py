"""Float32 matrix products on a CPU, by the faster of the two libraries that PyTorch brings.

PyTorch asks MKL, which keeps its AVX-512 code to Intel's CPUs. On others oneDNN, which has no such preference, may be
twice as fast; there `use_fastest` has this process's kernels call it. Who calls a product, or counts it, sees the same
operation as before.
"""

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

OPERATIONS = ("mm", "mm.out", "addmm", "addmm.out", "bmm", "bmm.out", "baddbmm", "baddbmm.out")
_FEWEST_MULTIPLICATIONS = 2**22
"""Of one product. Below, what oneDNN needs to begin is more than it saves."""


def library() -> str:
    """Whose products `use_fastest` chooses: by the CPU alone, so that the same machine gives the same bits."""
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return "BLAS"
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    is_unused = torch.backends.cpu.get_cpu_capability() == "AVX512" and _cpu_vendor() not in (None, "GenuineIntel")
    return "oneDNN" if has_onednn and is_unused else "MKL"


def use_fastest() -> None:
    """From here on, have this process's float32 products on the CPU made by `library`."""
    if library() == "oneDNN":
        _overridden()


@cache
def _overridden() -> Library:
    """The kernels stay as long as this does."""
    return override(Library("aten", "IMPL"))  # type: ignore[no-untyped-call]  # torch leaves it untyped


def override(into: Library) -> Library:
    """Register oneDNN's products with `into`, an implementation of ``aten``; what they do not take goes on to MKL."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
        for name in OPERATIONS:
            former = torch.library.get_kernel(f"aten::{name}", "CPU")
            kernel = _kernel(former.call_boxed)
            into.impl(name, kernel, "CPU", with_keyset=True)  # type: ignore[no-untyped-call]
    return into


def _kernel(former: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def kernel(  # Any: PyTorch's own set of keys
        keys: Any, *operands: Tensor, beta: float = 1, alpha: float = 1, out: Tensor | None = None
    ) -> Tensor:
        *added, a, b = operands
        if not _suits(a, b, out):
            scales = {"beta": beta, "alpha": alpha} if added else {}
            return former(keys, *operands, **scales, **({} if out is None else {"out": out}))
        c = added[0] if added and beta != 0 else None
        is_bias = c is not None and c.dim() == 1 and c.shape == b.shape[1:] and beta == alpha == 1
        product = _product(a, b, c.contiguous() if c is not None and is_bias else None)
        if alpha != 1:
            product.mul_(alpha)
        if c is not None and not is_bias:
            product.add_(c, alpha=beta)
        return product if out is None else out.copy_(product)

    return kernel


def _suits(a: Tensor, b: Tensor, out: Tensor | None) -> bool:
    """What does not is MKL's, or PyTorch's to refuse."""
    size = a.shape[-2] * a.shape[-1] * b.shape[-1]
    fit = (*a.shape[:-2], a.shape[-1]) == b.shape[:-1] and (out is None or out.shape == (*a.shape[:-1], b.shape[-1]))
    return a.dtype is b.dtype is torch.float32 and size >= _FEWEST_MULTIPLICATIONS and fit


def _product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """a [M, K] · b [K, N] + bias [N], or a [B, M, K] · b [B, K, N], whose products are large enough for turns."""
    if a.dim() == 3:
        return torch.stack([_product(a_i, b_i, None) for a_i, b_i in zip(a, b, strict=True)])
    # It takes a weight as F.linear does, [N, K].
    out: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(a), _dense(b).t(), bias, "none", [], "")
    return out


def _dense(x: Tensor) -> Tensor:
    """`x`, or a copy of what is part of a wider matrix, which oneDNN multiplies far slower."""
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


@cache
def _cpu_vendor() -> str | None:
    """As Linux tells it; None elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    return next(
        (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "vendor_id"), None
    )
