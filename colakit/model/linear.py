"""The projections: dense, CoLA and CoLA_FAN for one or several outputs of one input, and the full-rank FAN layer.

Projections that read the same input are stored together, so that they are one matrix product: the A's of Q, K and V
form one wide A. Storage is private, names are public: `naming` publishes ``q_proj.a``, ``q_proj.b``, …, one entry per
projection, whatever is stacked inside. `roles` tells an optimizer which matrices a parameter holds.

Shapes: D d_in, O d_out, R rank, N number of stacked factors; leading dimensions are kept.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colakit.model.dropout import Dropout

Role = Literal["matrix", "embedding", "head", "norm", "bias", "gate"]


class ParamRole(NamedTuple):
    """What a parameter is for, and the matrices stacked in it: the rows of each, from the top (none: not a matrix)."""

    role: Role
    matrix_rows: tuple[int, ...] = ()


class Projections(nn.Module, ABC):
    """Base: `d_in` features in, one output per part. Subclasses say how they are stored and multiplied."""

    def __init__(self, d_in: int, parts: Mapping[str, int]) -> None:
        super().__init__()
        self.d_in = d_in
        self.parts = dict(parts)

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [..., D] → one [..., O] per part, in the order of `parts`."""

    @abstractmethod
    def roles(self) -> dict[str, ParamRole]:
        """Role and stacked matrices of each of this module's parameters."""

    @abstractmethod
    def public_slices(self) -> dict[str, tuple[str, slice]]:
        """Public name (``q_proj.a``) → the parameter that stores it, and its rows there."""


def _rows(widths: Mapping[str, int]) -> dict[str, slice]:
    slices: dict[str, slice] = {}
    start = 0
    for name, width in widths.items():
        slices[name] = slice(start, start + width)
        start += width
    return slices


class Dense(Projections):
    """Full matrices without bias: W·x. `matrices_per_part` says how many matrices an optimizer sees in each part."""

    def __init__(self, d_in: int, parts: Mapping[str, int], matrices_per_part: int = 1) -> None:
        super().__init__(d_in, parts)
        self.matrices_per_part = matrices_per_part
        self.weight = nn.Parameter(torch.empty(sum(parts.values()), d_in))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [..., D] → one [..., O] per part."""
        return torch.split(F.linear(x, self.weight), list(self.parts.values()), dim=-1)

    def last_factors(self, x: Tensor) -> tuple[Tensor, Tensor, None]:
        """Input, weight and bias of the last product of a single part: x [..., D], W [O, D], none."""
        return x, self.weight, None

    def roles(self) -> dict[str, ParamRole]:
        """One weight that holds `matrices_per_part` matrices for each part."""
        n = self.matrices_per_part
        return {"weight": ParamRole("matrix", tuple(width // n for width in self.parts.values() for _ in range(n)))}

    def public_slices(self) -> dict[str, tuple[str, slice]]:
        """``<part>.weight``."""
        return {f"{name}.weight": ("weight", rows) for name, rows in _rows(self.parts).items()}


class LowRank(Projections):
    """Base of CoLA and CoLA_FAN: one wide A of all branches, and a B with bias for each branch.

    A branch is one low-rank product. Its A has no bias, its B has one.
    """

    def __init__(self, d_in: int, parts: Mapping[str, int], rank: int, branches: Mapping[str, int]) -> None:
        super().__init__(d_in, parts)
        self.rank = rank
        self.branches = dict(branches)
        """Public suffixes such as ``q_proj.{}_p``, with the output width of each branch."""
        self.a = nn.Parameter(torch.empty(len(branches) * rank, d_in))
        self.b = nn.ParameterList(torch.empty(width, rank) for width in branches.values())
        self.bias = nn.ParameterList(torch.empty(width) for width in branches.values())

    def low_rank(self, x: Tensor) -> tuple[Tensor, ...]:
        """σ(A·x) of every branch: [..., D] → N of [..., R]."""
        return torch.split(F.gelu(F.linear(x, self.a)), self.rank, dim=-1)

    def roles(self) -> dict[str, ParamRole]:
        """A holds one matrix per branch; each B is one."""
        roles = {"a": ParamRole("matrix", (self.rank,) * len(self.branches))}
        for i, width in enumerate(self.branches.values()):
            roles[f"b.{i}"] = ParamRole("matrix", (width,))
            roles[f"bias.{i}"] = ParamRole("bias")
        return roles

    def public_slices(self) -> dict[str, tuple[str, slice]]:
        """``<part>.a``, ``.b``, ``.bias``, with ``_p`` and ``_np`` behind them where a part has two branches."""
        slices: dict[str, tuple[str, slice]] = {}
        for i, template in enumerate(self.branches):
            slices[template.format("a")] = ("a", slice(i * self.rank, (i + 1) * self.rank))
            slices[template.format("b")] = (f"b.{i}", slice(None))
            slices[template.format("bias")] = (f"bias.{i}", slice(None))
        return slices


def _expand(z: Tensor, b: Tensor, bias: Tensor) -> Tensor:
    """B·z + bias: [..., R] → [..., O].

    In two dimensions: `F.linear` of a strided three-dimensional input, as a slice of the wide A's output is, falls back
    to mm and add, which CoLA-M would take for an A.
    """
    return F.linear(z.reshape(-1, z.shape[-1]), b, bias).view(*z.shape[:-1], -1)


class CoLA(LowRank):
    """CoLA (Algorithm 3, eq. 8): h' = B·σ(A·x), σ = GELU, A ∈ R^{R×D} without bias, B ∈ R^{O×R} with one."""

    def __init__(self, d_in: int, parts: Mapping[str, int], rank: int) -> None:
        super().__init__(d_in, parts, rank, {f"{name}.{{}}": width for name, width in parts.items()})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [..., D] → one [..., O] per part."""
        z = self.low_rank(x)
        return tuple(_expand(z_i, b, bias) for z_i, b, bias in zip(z, self.b, self.bias, strict=True))

    def last_factors(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Input, weight and bias of the last product of a single part: σ(A·x) [..., R], B [O, R], bias [O]."""
        (z,) = self.low_rank(x)
        return z, self.b[0], self.bias[0]


class CoLAFAN(LowRank):
    """CoLA_FAN (Algorithm 1): [cos(p), sin(p), n] with p = B_p·drop(σ(A_p·x)) and n = B_np·drop(σ(A_np·x)).

    p has int(O·fan_ratio) features, n the remaining O − 2·int(O·fan_ratio). A ratio of 0 is `CoLA`, which
    `low_rank_projections` then builds.
    """

    def __init__(self, d_in: int, parts: Mapping[str, int], rank: int, fan_ratio: float, dropout: float) -> None:
        branches: dict[str, int] = {}
        for name, width in parts.items():
            p_dim = fan_features(width, fan_ratio)
            branches |= {f"{name}.{{}}_p": p_dim, f"{name}.{{}}_np": width - 2 * p_dim}
        super().__init__(d_in, parts, rank, branches)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [..., D] → one [..., O] per part."""
        z = self.low_rank(x)
        h = [_expand(self.dropout(z_i), b, bias) for z_i, b, bias in zip(z, self.b, self.bias, strict=True)]
        return tuple(torch.cat([p.cos(), p.sin(), n], dim=-1) for p, n in zip(h[::2], h[1::2], strict=True))


def low_rank_projections(
    d_in: int, parts: Mapping[str, int], rank: int, *, fan_ratio: float, dropout: float
) -> CoLA | CoLAFAN:
    """CoLA_FAN for the parts, or plain CoLA where `fan_ratio` is 0."""
    if fan_ratio == 0.0:
        return CoLA(d_in, parts, rank)
    return CoLAFAN(d_in, parts, rank, fan_ratio, dropout)


def fan_features(d_out: int, fan_ratio: float) -> int:
    """p_dim = int(d_out·p), the width of the cosine and of the sine part (Algorithm 1, line 2)."""
    return int(d_out * fan_ratio)


class FAN(nn.Module):
    """The full-rank FAN layer of ATF (§2.3.3): [cos(W_p·x), sin(W_p·x), W_n·x + b], D → D, no activation.

    One per block, where Algorithm 2 writes one per head: this is what the printed difference of 6.0M parameters fits.
    """

    def __init__(self, d_model: int, fan_ratio: float) -> None:
        super().__init__()
        self.p_dim = fan_features(d_model, fan_ratio)
        self.n_dim = d_model - 2 * self.p_dim
        self.w_p = nn.Parameter(torch.empty(self.p_dim, d_model))
        self.w_n = nn.Parameter(torch.empty(self.n_dim, d_model))
        self.bias = nn.Parameter(torch.empty(self.n_dim))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] → [..., D]."""
        p = F.linear(x, self.w_p)
        return torch.cat([p.cos(), p.sin(), F.linear(x, self.w_n, self.bias)], dim=-1)

    def roles(self) -> dict[str, ParamRole]:
        """Two matrices and a bias."""
        return {
            "w_p": ParamRole("matrix", (self.p_dim,)),
            "w_n": ParamRole("matrix", (self.n_dim,)),
            "bias": ParamRole("bias"),
        }
