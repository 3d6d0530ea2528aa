"""The SwiGLU feed-forward (Shazeer, arXiv 2002.05202), over dense or low-rank projections."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

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
        hidden: Tensor = _SwiGLU.apply(gate_up)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        out: Tensor = self.down(hidden)[0]
        return out


class _SwiGLU(Function):
    """silu(gate) ⊙ up, which keeps its input alone: silu(gate) is computed again, where its gradient will stand."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        by_gate_up = torch.empty_like(gate_up)
        by_gate, by_up = by_gate_up.chunk(2, dim=-1)
        F.silu(by_up.copy_(gate), inplace=True).mul_(by_out)
        by_gate.copy_(by_out).mul_(up)
        torch.ops.aten.silu_backward(by_gate, gate, grad_input=by_gate)
        return by_gate_up
