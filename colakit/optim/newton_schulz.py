"""Newton–Schulz orthogonalisation of a batch of matrices: pure functions.

Source: eq. 13–15 of the paper, after Jordan et al. 2024 ("Muon").
Shapes: N matrices, M rows, K columns.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from colakit.analysis.newton_schulz import Form, cheaper_form, newton_schulz_flops, passes

Coefficients = tuple[float, float, float]
"""a, b, c of eq. 15: an iteration makes a·s + b·s³ + c·s⁵ of each singular value s."""


def orthogonalize(matrices: Tensor, coefficients: Coefficients, steps: int) -> Tensor:
    """Approximate (X·Xᵀ)^(−1/2)·X for each X in [N, M, K]: every singular value near 1. `matrices` are overwritten.

    Takes the form with fewer operations, in float32; on a GPU that multiplies bfloat16 natively, the textbook's in
    bfloat16. A zero matrix stays zero. float64 stays float64.
    """
    x = normalize_(matrices)
    dtype = compute_dtype(x)
    if form_of(x.shape[-2:], dtype, coefficients, steps) == "gram":
        return gram(x, coefficients, steps)
    return textbook(x.to(dtype), coefficients, steps).to(x.dtype)


def compute_dtype(matrices: Tensor) -> torch.dtype:
    """bfloat16 where the device multiplies it natively: CPUs without it emulate, some 45 times slower. Else its own."""
    native = matrices.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native and matrices.dtype == torch.float32 else matrices.dtype


def form_of(shape: Sequence[int], dtype: torch.dtype, coefficients: Coefficients, steps: int) -> Form:
    """What `orthogonalize` does with matrices of `shape` (M, K) in `dtype`."""
    if dtype == torch.bfloat16:  # the tensor cores are fast enough for the textbook, and the other form does not hold
        return "textbook"
    short, long = sorted(shape)
    return cheaper_form(short, long, steps, coefficients[0])


def flops(shape: tuple[int, int], dtype: torch.dtype, coefficients: Coefficients, steps: int) -> int:
    """Floating point operations of one matrix of `shape`, multiplied in `dtype`."""
    form = form_of(shape, dtype, coefficients, steps)
    return newton_schulz_flops(min(shape), max(shape), steps, coefficients[0], form)


def workspace_bytes(
    shape: tuple[int, int], own: torch.dtype, dtype: torch.dtype, coefficients: Coefficients, steps: int
) -> int:
    """What `orthogonalize` holds at most for one matrix of `shape` in type `own`, multiplied in `dtype`, itself too."""
    matrix, square = math.prod(shape), min(shape) ** 2
    if form_of(shape, dtype, coefficients, steps) == "gram":
        held = 2 if len(passes(steps, coefficients[0])) == 1 else 3
        return own.itemsize * max(held * matrix + 3 * square, matrix + 5 * square)
    iterates = 1 if steps == 1 and own == dtype else 2
    iterating = dtype.itemsize * (iterates * matrix + 2 * square)
    returning = 0 if own == dtype else (own.itemsize + dtype.itemsize) * matrix
    return own.itemsize * matrix + max(iterating, returning)


def normalize_(matrices: Tensor) -> Tensor:
    """Divide each X in [N, M, K] by its Frobenius norm, which bounds its spectral norm by 1 (eq. 14), in place.

    The largest entry is divided out first, since the squares of entries below 1e-22 or above 1e18 leave float32. The
    floor, the smallest normal number, keeps 0/0 out.
    """
    tiny = torch.finfo(matrices.dtype).tiny
    for order in (float("inf"), 2.0):
        norm = torch.linalg.vector_norm(matrices, order, dim=(-2, -1), keepdim=True)
        matrices.div_(norm.clamp_min_(tiny))
    return matrices


def textbook(x: Tensor, coefficients: Coefficients, steps: int) -> Tensor:
    """Eq. 15 on each normalised X in [N, M, K], in its own type, on the smaller Gram side."""
    a, b, c = coefficients
    tall = x.shape[-2] > x.shape[-1]
    for _ in range(steps):
        r = torch.bmm(x.mT, x) if tall else torch.bmm(x, x.mT)
        p = torch.baddbmm(r, r, r, beta=b, alpha=c)
        x = torch.baddbmm(x, x, p, beta=a) if tall else torch.baddbmm(x, p, x, beta=a)
    return x


def gram(x: Tensor, coefficients: Coefficients, steps: int) -> Tensor:
    """The same by iterating on R = X·Xᵀ alone: with p(R) = a·I + b·R + c·R², X becomes p(R)·X and R p(R)·R·p(R).

    All are polynomials of the first R and commute, so that one product with X at the end of a pass is enough. In
    float32 within 1e-4 of the textbook form for any spectrum, 3e-6 for random matrices: see `passes` for what holds.
    """
    a, b, c = coefficients
    tall = x.shape[-2] > x.shape[-1]
    for iterations in passes(steps, a):
        r = torch.bmm(x.mT, x) if tall else torch.bmm(x, x.mT)
        q = None
        for i in range(iterations):
            p = torch.baddbmm(r, r, r, beta=b, alpha=c)
            p.diagonal(dim1=-2, dim2=-1).add_(a)
            q = p if q is None else torch.bmm(p, q)
            if i + 1 < iterations:
                r = torch.bmm(torch.bmm(p, r), p)
        assert q is not None
        x = torch.bmm(x, q.mT) if tall else torch.bmm(q, x)
    return x
