"""Multi-head attention with shared key and value heads, normalised Q, K and V, and rotary positions.

Shapes: B batch, T time, D d_model, H heads, K kv heads, E head_dim.
"""

from torch import Tensor, nn

from colakit.model.backends import Attend, see
from colakit.model.cache import Cached
from colakit.model.documents import Packed
from colakit.model.linear import Projections
from colakit.model.rope import Rotary


class Attention(nn.Module):
    """MHA_QKV (eq. 3): softmax(Norm(Q)·Norm(K)ᵀ/√E)·Norm(V), causal.

    With a FAN layer as `features` it is ATF (Algorithm 2).
    """

    def __init__(
        self,
        *,
        depth: int,
        n_heads: int,
        n_kv_heads: int,
        features: nn.Module,
        qkv: Projections,
        o_proj: Projections,
        norms: tuple[nn.Module, nn.Module, nn.Module],
        rope: Rotary,
        attend: Attend,
        attention_dropout: float,
        output_dropout: float,
    ) -> None:
        super().__init__()
        self.depth = depth
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.features = features
        self.qkv = qkv
        self.out = o_proj
        self.q_norm, self.k_norm, self.v_norm = norms
        self.rope = rope
        self.attend = attend
        self.attention_dropout = attention_dropout
        self.output_dropout = nn.Dropout(output_dropout)

    def forward(self, x: Tensor, context: Packed | Cached | None = None) -> Tensor:
        """x [B, T, D] → [B, T, D]: a row by itself, its documents apart, or what follows the tokens of a cache."""
        angles = context.angles if context is not None else None
        q, k, v = self.qkv(self.features(x))
        q = self.rope(self.q_norm(self._heads(q, self.n_heads)), angles)  # [B, H, T, E]
        k = self.rope(self.k_norm(self._heads(k, self.n_kv_heads)), angles)  # [B, K, T, E]
        v = self.v_norm(self._heads(v, self.n_kv_heads))
        dropout = self.attention_dropout if self.training else 0.0
        if isinstance(context, Cached):
            k, v = context.cache.update(k, v, self.depth)  # [B, K, S, E]
        if isinstance(context, Cached) and (context.visible is not None or k.shape[2] != q.shape[2]):
            o = see(q, k, v, context.visible, dropout)
        else:
            o = self.attend(q, k, v, dropout, context.documents if isinstance(context, Packed) else None)
        out: Tensor = self.output_dropout(self.out(o.transpose(1, 2).flatten(2))[0])  # [B, T, H·E] → [B, T, D]
        return out

    @staticmethod
    def _heads(x: Tensor, n: int) -> Tensor:
        """[B, T, n·E] → [B, n, T, E]."""
        return x.view(*x.shape[:-1], n, -1).transpose(1, 2)
