"""The SwiGLU feed-forward (Shazeer, arXiv 2002.05202), over dense or low-rank projections."""

import torch.nn.functional as F
from torch import Tensor, nn

from colakit.model.linear import Projections


class MLP(nn.Module):
    """down(silu(gate(x)) ⊙ up(x)); gate and up are one projection of width 2·d_ff."""

    def __init__(self, gate_up_proj: Projections, down_proj: Projections) -> None:
        super().__init__()
        self.gate_up = gate_up_proj
        self.down = down_proj

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_model] → [..., d_model]."""
        (gate_up,) = self.gate_up(x)
        gate, up = gate_up.chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)[0]
        return out
