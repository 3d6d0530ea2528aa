"""Initialisation: every projection keeps the mean square of its input, so the residual stream starts and stays near 1.

A CoLA layer reads x of mean square 1 and draws A with variance 1/D, so A·x is standard normal and E[gelu(A·x)²] is
`GELU_SECOND_MOMENT`; B with variance 1/(R·that) brings the output back to 1. The two projections that write to the
residual stream are scaled by 1/√(2·n_layers) (Radford et al. 2019), and the head so that the first logits are small.
"""

import math

import torch
from torch import Tensor, nn

from colakit.model.linear import FAN, Dense, LowRank, Projections

GELU_SECOND_MOMENT = 0.4252
"""E[gelu(z)²] for standard normal z."""

HEAD_GAIN = 0.1
"""Standard deviation of the logits of an untied head at the start."""


def init_projections(module: Projections, gain: float, generator: torch.Generator) -> None:
    """Draw the weights so that an input of mean square 1 gives outputs of mean square gain²; biases are 0."""
    if isinstance(module, Dense):
        _normal(module.weight, gain / math.sqrt(module.d_in), generator)
        return
    assert isinstance(module, LowRank)
    _normal(module.a, 1.0 / math.sqrt(module.d_in), generator)
    for b, bias in zip(module.b, module.bias, strict=True):
        _normal(b, gain / math.sqrt(module.rank * GELU_SECOND_MOMENT), generator)
        nn.init.zeros_(bias)


def init_fan(module: FAN, generator: torch.Generator) -> None:
    """Draw W_p and W_n so that W·x has the mean square of x; the bias is 0."""
    _normal(module.w_p, 1.0 / math.sqrt(module.w_p.shape[1]), generator)
    _normal(module.w_n, 1.0 / math.sqrt(module.w_n.shape[1]), generator)
    nn.init.zeros_(module.bias)


def init_embedding(weight: Tensor, generator: torch.Generator) -> None:
    """Draw rows of length about 1; the model multiplies them by √D, to a mean square of 1."""
    _normal(weight, 1.0 / math.sqrt(weight.shape[1]), generator)


def _normal(tensor: Tensor, std: float, generator: torch.Generator) -> None:
    nn.init.normal_(tensor, std=std, generator=generator)
