"""Dropout of any probability by one piece of compiled code."""

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """`nn.Dropout`, whose probability torch.compile reads from a tensor.

    As the number that it is elsewhere it becomes part of the compiled code: blocks that differ in nothing else would be
    compiled one by one, and from the eighth on not at all.
    """

    share: Tensor

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self._is_on = p > 0.0
        self.register_buffer("share", torch.tensor(p), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape → the same, scaled so that its mean stays."""
        if not torch.compiler.is_compiling():
            return super().forward(x)
        if not (self.training and self._is_on):
            return x
        keep = torch.rand(x.shape, device=x.device) >= self.share
        return torch.where(keep, x, 0.0) / (1.0 - self.share)
