"""Rotary position embedding (Su et al., arXiv 2104.09864), in the half-split layout that `transformers` uses.

Shapes: B batch, H heads, T time, E head_dim.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Angles(NamedTuple):
    """Cosines and sines by which features are turned, each [..., T, E/2] and broadcast over heads."""

    cos: Tensor
    sin: Tensor


class Rotary(nn.Module):
    """Turns features i and i + E/2 by position · theta^(−2i/E). Norms are kept; products depend on distance alone."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, seq_len: int, theta: float) -> None:
        super().__init__()
        # float64, rounded once: float32 angles are off by some 1e-5 rad at position 1000.
        frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.outer(torch.arange(seq_len, dtype=torch.float64), frequencies)  # [T, E/2]
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def at(self, positions: Tensor) -> Angles:
        """The angles of `positions` [B, T] int64, below the seq_len of construction: [B, 1, T, E/2] each.

        Of positions [T] that all rows share: [T, E/2].
        """
        cos, sin = self.cos[positions], self.sin[positions]
        return Angles(cos, sin) if positions.ndim == 1 else Angles(cos.unsqueeze(1), sin.unsqueeze(1))

    def forward(self, x: Tensor, angles: Angles | None = None) -> Tensor:
        """x [B, H, T, E], turned by `angles` → the same shape and dtype.

        Unset, they are those of positions 0 … T−1, and T is at most the seq_len of construction.
        """
        t = x.shape[-2]
        cos, sin = angles if angles is not None else (self.cos[:t], self.sin[:t])
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
