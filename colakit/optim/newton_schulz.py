"""Newton–Schulz orthogonalisation of a batch of matrices: pure functions, the textbook form.

Source: eq. 13–15 of the paper, after Jordan et al. 2024 ("Muon").
Shapes: N matrices, M rows, K columns.
"""

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of eq. 15: steep at 0, so that five iterations bring singular values of 0.01 … 1 into 0.68 … 1.14."""


def orthogonalize(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Approximate (X·Xᵀ)^(−1/2)·X for each X in [N, M, K]: every singular value near 1.

    Iterates in `dtype`, returns the dtype given. A zero matrix stays zero. Matrices taller than wide are iterated
    transposed, on their smaller Gram side.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    # Eq. 14: the Frobenius norm bounds the spectral norm by 1. The largest entry is divided out first, since the
    # squares of entries below 1e-22 or above 1e18 leave float32. The floor, the smallest normal number, keeps 0/0 out.
    tiny = torch.finfo(x.dtype).tiny
    x = x / x.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(tiny)
    x = (x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(tiny)).to(dtype)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    out: Tensor = (x.mT if tall else x).to(matrices.dtype)
    return out


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it natively, else float32: CPUs without it emulate, some 45 times slower."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32
