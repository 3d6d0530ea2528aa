"""Newton–Schulz orthogonalisation of a batch of matrices: pure functions.

Source: eq. 13–15 of the paper, after Jordan et al. 2024 ("Muon").
Shapes: N matrices, M rows, K columns.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from colakit.analysis.newton_schulz import Form, cheaper_form, newton_schulz_flops, passes, strips

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
        parts = passes(steps, coefficients[0])
        return own.itemsize * max(_gram_workspace(matrix, min(shape), n, first=i == 0) for i, n in enumerate(parts))
    iterates = 1 if steps == 1 and own == dtype else 2
    iterating = dtype.itemsize * (iterates * matrix + 2 * square)
    returning = 0 if own == dtype else (own.itemsize + dtype.itemsize) * matrix
    return own.itemsize * matrix + max(iterating, returning)


def _gram_workspace(matrix: int, short: int, iterations: int, *, first: bool) -> int:
    """Entries held in one pass: the matrix given, X of this pass unless it is the first, and the small ones."""
    held = matrix if first else 2 * matrix
    rows = strips(short)
    strip = rows[0][1] * short if len(rows) > 1 else 0
    iterating = {1: 2, 2: 4}.get(iterations, 5) * short**2 + strip
    ending = matrix + min(iterations + 1, 3) * short**2
    return held + max(iterating, ending)


def normalize_(matrices: Tensor) -> Tensor:
    """Divide each X in [N, M, K] by its Frobenius norm, which bounds its spectral norm by 1 (eq. 14), in place.

    The largest entry is divided out first, since the squares of entries below 1e-22 or above 1e18 leave float32. The
    floor, the smallest normal number, keeps 0/0 out.
    """
    tiny = torch.finfo(matrices.dtype).tiny
    sides = (-2, -1)
    # vector_norm's own maximum takes ten times as long on a CPU.
    largest = torch.maximum(matrices.amax(sides, keepdim=True), matrices.amin(sides, keepdim=True).neg_())
    matrices.div_(largest.clamp_min_(tiny))
    return matrices.div_(torch.linalg.vector_norm(matrices, dim=sides, keepdim=True).clamp_min_(tiny))


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

    All are polynomials of the first R: they are symmetric and commute, so that one product with X at the end of a pass
    is enough. In float32 within 1e-3 of the textbook form for any spectrum, 5e-6 for random matrices: see `passes` for
    what holds.
    """
    a, b, c = coefficients
    tall = x.shape[-2] > x.shape[-1]
    for iterations in passes(steps, a):
        r = symmetric_product(x.mT, x) if tall else symmetric_product(x, x.mT)
        q = None
        for i in range(iterations):
            p = symmetric_product(r, r).mul_(c).add_(r, alpha=b)
            p.diagonal(dim1=-2, dim2=-1).add_(a)
            q = p if q is None else symmetric_product(p, q)
            if i + 1 < iterations:
                r = symmetric_product(symmetric_product(p, r), p)
        assert q is not None
        x = torch.bmm(x, q) if tall else torch.bmm(q, x)
    return x


def symmetric_product(a: Tensor, b: Tensor) -> Tensor:
    """A·B of [N, M, K] and [N, K, M] where it is symmetric: in strips of rows, each mirrored below the diagonal."""
    n, m, _ = a.shape
    rows = strips(m)
    if len(rows) == 1:
        return torch.bmm(a, b)
    product = a.new_empty(n, m, m)
    for low, high in rows:
        product[:, low:high, low:] = torch.bmm(a[:, low:high], b[:, :, low:])
        product[:, high:, low:high] = product[:, low:high, high:].mT
    return product
