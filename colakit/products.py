"""Float32 matrix products on a CPU, by the faster of the two libraries that PyTorch brings.

PyTorch asks MKL, which keeps its AVX-512 code to Intel's CPUs. On others oneDNN, which has no such preference, may be
twice as fast; there `use_fastest` has this process's ``mm`` and ``addmm`` call it. Who calls a product, or counts it,
sees the same operation as before, and stacks of matrices stay MKL's, which is faster at many small ones.
"""

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

OPERATIONS = ("mm", "mm.out", "addmm", "addmm.out")
_FEWEST_MULTIPLICATIONS = 2**22
_FEWEST_ROWS = 16
"""Of a product: rows and columns. Below either, what oneDNN needs to begin is more than it saves."""
_CPUINFO = Path("/proc/cpuinfo")


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
    def kernel(keys: Any, *operands: Tensor, **options: Any) -> Tensor:  # Any: PyTorch's set of keys, and its scalars
        if not _suits(*operands, **options):
            return former(keys, *operands, **options)
        *bias, a, b = operands
        # It takes a weight as F.linear does, [N, K].
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            _dense(a), _dense(b).t(), bias[0].contiguous() if bias else None, "none", [], ""
        )
        return options["out"].copy_(product) if "out" in options else product

    return kernel


def _suits(*operands: Tensor, out: Tensor | None = None, beta: float = 1, alpha: float = 1) -> bool:
    """For a [M, K] and b [K, N], and a bias [N] before them; what does not is MKL's, or PyTorch's to refuse."""
    *added, a, b = operands
    if not (a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] and beta == alpha == 1):
        return False
    (m, k), n = a.shape, b.shape[1]
    is_large = m * k * n >= _FEWEST_MULTIPLICATIONS and min(m, n) >= _FEWEST_ROWS
    fit = all(c.shape == (n,) for c in added) and (out is None or out.shape == (m, n))
    return is_large and fit and all(t.dtype is torch.float32 for t in (*operands, *([] if out is None else [out])))


def _dense(x: Tensor) -> Tensor:
    """`x`, or a copy of what is part of a wider matrix, which oneDNN multiplies far slower."""
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


@cache
def _cpu_vendor() -> str | None:
    """As Linux tells it; None elsewhere."""
    try:
        lines = _CPUINFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in fields if key.strip() == "vendor_id"), None)
