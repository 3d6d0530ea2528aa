"""One block, and where its norms sit: pre (eq. 1), post (eq. 2), hybrid (eq. 3–7) or the listing of §2.1.1.

The placement is a function chosen at construction. The norm of Q, K and V (eq. 3) is part of the attention.

Shapes: B batch, T time, D d_model.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from colakit.model.cache import Cached
from colakit.model.documents import Packed
from colakit.model.norm import RMSNorm

Context = Packed | Cached | None
"""What attention reads besides a row itself."""

Wired = Callable[[Tensor, Context], Tensor]
"""What a block computes: x [B, T, D] → [B, T, D]."""

RunBlock = Callable[[Wired, Tensor, Context], Tensor]
"""How it is computed: plainly, with less kept for the backward pass, or compiled."""

NormPlacement = Literal["pre", "post", "hybrid", "listing"]


class GatedResidual(nn.Module):
    """x + sigmoid(g) ⊙ y with a learned g per channel, 0 at the start (§2.1.1; the form of the gate is ours)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x, y [..., D] → [..., D]."""
        return x + self.gate.sigmoid() * y


class Block(nn.Module):
    """Attention and feed-forward around a residual stream.

    `norm` builds an RMSNorm of the model's width. `first` is the first block of the model, which HybridNorm* treats
    differently (§2.1.2). A block holds only the norms its placement uses.
    """

    def __init__(
        self,
        attention: nn.Module,
        mlp: nn.Module,
        *,
        placement: NormPlacement,
        first: bool,
        norm: Callable[[], RMSNorm],
    ) -> None:
        super().__init__()
        self.attention = attention
        self.mlp = mlp
        self.wiring = hybrid_first if placement == "hybrid" and first else WIRINGS[placement]
        if self.wiring in (pre, post, hybrid_first):
            self.attention_norm = norm()
        self.mlp_norm = norm()
        if self.wiring is listing:
            self.post_mlp_norm = norm()
            self.gated_residual = GatedResidual(self.mlp_norm.weight.numel())

    def forward(self, x: Tensor, context: Context = None, run: RunBlock | None = None) -> Tensor:
        """x [B, T, D] → [B, T, D]; `context` as for `Attention`. `run` computes it; None: plainly.

        Inside, so that hooks on the module, which gather its weights where they are sharded, are outside of what is
        computed again or compiled.
        """
        return self.wired(x, context) if run is None else run(self.wired, x, context)

    def wired(self, x: Tensor, context: Context) -> Tensor:
        """What `forward` computes."""
        return self.wiring(self, x, context)


def pre(block: Block, x: Tensor, context: Context) -> Tensor:
    """Eq. 1, twice: Y = MHA(Norm(X)) + X; X' = FFN(Norm(Y)) + Y."""
    y = block.attention(block.attention_norm(x), context) + x
    out: Tensor = block.mlp(block.mlp_norm(y)) + y
    return out


def post(block: Block, x: Tensor, context: Context) -> Tensor:
    """Eq. 2, twice: Y = Norm(MHA(X) + X); X' = Norm(FFN(Y) + Y)."""
    y = block.attention_norm(block.attention(x, context) + x)
    out: Tensor = block.mlp_norm(block.mlp(y) + y)
    return out


def hybrid(block: Block, x: Tensor, context: Context) -> Tensor:
    """Eq. 4–5: Y = MHA_QKV(X) + X; X' = FFN(Norm(Y)) + Norm(Y)."""
    n = block.mlp_norm(block.attention(x, context) + x)
    out: Tensor = block.mlp(n) + n
    return out


def hybrid_first(block: Block, x: Tensor, context: Context) -> Tensor:
    """Eq. 6–7: Y⁰ = MHA_QKV(Norm(X⁰)) + X⁰; X¹ = FFN(Norm(Y⁰)) + Y⁰: pre-norm wiring, Q, K and V normalised inside."""
    return pre(block, x, context)


def listing(block: Block, x: Tensor, context: Context) -> Tensor:
    """§2.1.1: Y = MHA_QKV(X) + X (eq. 4); X' = PostNorm(gated_residual(Y, FFN(Norm(Y))))."""
    y = block.attention(x, context) + x
    out: Tensor = block.post_mlp_norm(block.gated_residual(y, block.mlp(block.mlp_norm(y))))
    return out


WIRINGS: dict[NormPlacement, Callable[[Block, Tensor, Context], Tensor]] = {
    "pre": pre,
    "post": post,
    "hybrid": hybrid,
    "listing": listing,
}
