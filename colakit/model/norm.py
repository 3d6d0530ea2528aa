"""The norms: RMSNorm (Zhang and Sennrich, arXiv 1910.07467) wherever a norm sits, and the listing's unit norm."""

import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """x / RMS(x) ⊙ w over the last dimension, in the dtype of x.

    PyTorch's own gives up its fused kernel where x comes in bfloat16 from a product and w is in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] → [..., D]."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class L2Norm(nn.Module):
    """Unit L2 norm over the last dimension: the listing's norm of Q, K and V (§2.1.1).

    It bounds every attention logit to ±1/√E, which is close to uniform attention; RMSNorm bounds it to ±√E.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [..., E] → [..., E], each vector of length 1."""
        return F.normalize(x, dim=-1)
