"""Newton–Schulz orthogonalisation of a batch of matrices: pure functions.

Source: eq. 13–15 of the paper, after Jordan et al. 2024 ("Muon").
Shapes: N matrices, M rows, K columns.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from colakit.analysis.newton_schulz import Form, cheaper_form, newton_schulz_flops, passes, strips

Coefficients = tuple[float, float, float]
"""a, b, c of eq. 15: an iteration makes a·s + b·s³ + c·s⁵ of each singular value s."""


def orthogonalize(matrices: Tensor, coefficients: Coefficients, steps: int) -> Tensor:
    """Approximate (X·Xᵀ)^(−1/2)·X for each X in [N, M, K]: every singular value near 1. `matrices` are overwritten.

    Takes the form with fewer operations, in float32; on a GPU that multiplies bfloat16 natively, the textbook's in
    bfloat16. A zero matrix stays zero. Returns the type given.
    """
    dtype = compute_dtype(matrices)
    iterate = gram if form_of(matrices.shape[-2:], dtype, coefficients, steps) == "gram" else textbook
    device = matrices.device.type
    # Inside autocast the products would be in bfloat16, whatever the form.
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        return iterate(normalize_(matrices).to(dtype), coefficients, steps).to(matrices.dtype)


def compute_dtype(matrices: Tensor) -> torch.dtype:
    """bfloat16 on a GPU that multiplies it natively, else float32: emulated, it is some 45 times slower on a CPU.

    CPUs take float32 even where they have bfloat16: it is as fast there, and exact. float64 stays.
    """
    if matrices.dtype == torch.float64:
        return torch.float64
    native = matrices.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


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
    ending = matrix + short**2
    return held + max(iterating, ending)


def normalize_(matrices: Tensor) -> Tensor:
    """Divide each X in [N, M, K] by its Frobenius norm, which bounds its spectral norm by 1 (eq. 14), in place.

    The largest entry is divided out first, since the squares of entries below 1e-22 or above 1e18 leave float32. The
    floor, the smallest normal number, keeps 0/0 out. The norm is taken over rows first: one float32 sum over a million
    squares is off by 1e-5, which Newton–Schulz passes on.
    """
    tiny = torch.finfo(matrices.dtype).tiny
    sides = (-2, -1)
    # vector_norm's own maximum takes ten times as long on a CPU.
    largest = torch.maximum(matrices.amax(sides, keepdim=True), matrices.amin(sides, keepdim=True).neg_())
    matrices.div_(largest.clamp_min_(tiny))
    rows = torch.linalg.vector_norm(matrices, dim=-1, keepdim=True)
    return matrices.div_(torch.linalg.vector_norm(rows, dim=-2, keepdim=True).clamp_min_(tiny))


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
    is enough. Five steps in float32 are within 3e-6 of float64 on random matrices and 6e-4 for any spectrum; see
    `passes` for what holds.
    """
    tall = x.shape[-2] > x.shape[-1]
    for n in passes(steps, coefficients[0]):
        x = torch.bmm(x, _polynomial(x, coefficients, n)) if tall else torch.bmm(_polynomial(x, coefficients, n), x)
    return x


def _polynomial(x: Tensor, coefficients: Coefficients, iterations: int) -> Tensor:
    """What the iterations of one pass multiply X by, on its smaller side."""
    a, b, c = coefficients
    tall = x.shape[-2] > x.shape[-1]
    r = symmetric_product(x.mT, x) if tall else symmetric_product(x, x.mT)
    q = None
    for i in range(iterations):
        p = symmetric_product(r, r).mul_(c).add_(r, alpha=b)
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        q = p if q is None else symmetric_product(p, q)
        if i + 1 < iterations:
            r = symmetric_product(symmetric_product(p, r), p)
    assert q is not None
    return q


def symmetric_product(a: Tensor, b: Tensor) -> Tensor:
    """A·B of [N, M, K] and [N, K, M] where it is symmetric: in strips of rows, each mirrored below the diagonal.

    The squares on the diagonal are made symmetric to the last bit, as the rest is: with strips alone, the parts would
    disagree, and singular values of 0 come out 30 times less exact.
    """
    n, m, _ = a.shape
    rows = strips(m)
    if len(rows) == 1:
        return torch.bmm(a, b)
    product = a.new_empty(n, m, m)
    for low, high in rows:
        product[:, low:high, low:] = torch.bmm(a[:, low:high], b[:, :, low:])
        square = product[:, low:high, low:high]
        square.add_(square.mT.clone()).mul_(0.5)
        product[:, high:, low:high] = product[:, low:high, high:].mT
    return product
