"""The norms: RMSNorm (Zhang and Sennrich, arXiv 1910.07467) wherever a norm sits, and the listing's unit norm."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class RMSNorm(nn.RMSNorm):
    """x / RMS(x) ⊙ w over the last dimension, in the dtype of x.

    PyTorch's own gives up its fused kernel where x comes in bfloat16 from a product and w is in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] → [..., D]."""
        weight = self.weight.to(x.dtype)
        if x.is_cuda:
            return F.rms_norm(x, self.normalized_shape, weight, self.eps)
        eps = self.eps if self.eps is not None else torch.finfo(x.dtype).eps
        out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return out


class _RMSNorm(Function):
    """Where PyTorch has no kernel of its own: keeps x and 1/RMS alone, as its CUDA kernel does, not x / RMS too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x_f = _at_least_float32(x)
        inverse = x_f.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x_f * inverse).to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        normed, by_out_f = _at_least_float32(x) * inverse, _at_least_float32(by_out)
        by_weight = (by_out_f * normed).flatten(0, -2).sum(dim=0)
        by_normed = by_out_f * weight
        along = (by_normed * normed).mean(dim=-1, keepdim=True)
        by_x = torch.addcmul(by_normed, normed, along, value=-1.0).mul_(inverse)
        return by_x.to(x.dtype), by_weight.to(weight.dtype), None


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class L2Norm(nn.Module):
    """Unit L2 norm over the last dimension: the listing's norm of Q, K and V (§2.1.1).

    It bounds every attention logit to ±1/√E, which is close to uniform attention; RMSNorm bounds it to ±√E.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [..., E] → [..., E], each vector of length 1."""
        return F.normalize(x, dim=-1)
