"""CoLA as published (Liu et al., arXiv 2502.10940): a Llama whose projections are h = B·σ(A·x). Imports no colakit.

Written from the equations, in another structure than colakit's: a module for each of q, k, v, o, gate, up and down, one
head at a time, a mask of −∞, nothing stacked. The norm is RMSNorm before each sublayer; positions are rotary, in the
half-split layout; key and value heads are shared by neighbouring query heads; the feed-forward is SwiGLU. σ and the
biases are what the caller makes them, since published versions differ there.

Shapes: T time, D d_model, E head_dim, R rank, V vocab.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """Of the model, under Llama's names."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    rank: int
    down_rank: int
    """Of down_proj, whose input is wider."""
    rms_norm_eps: float
    rope_theta: float
    tied: bool
    sigma: Callable[[Tensor], Tensor]


class LowRank(nn.Module):
    """h = B·σ(A·x) + bias."""

    def __init__(self, d_in: int, d_out: int, rank: int, sigma: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, d_in, dtype=torch.float64))
        self.B = nn.Parameter(torch.empty(d_out, rank, dtype=torch.float64))
        self.bias = nn.Parameter(torch.empty(d_out, dtype=torch.float64))
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """x [T, d_in] → [T, d_out]."""
        return self.sigma(x @ self.A.T) @ self.B.T + self.bias


class Norm(nn.Module):
    """x / √(mean(x²) + eps) ⊙ w."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, dtype=torch.float64))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [T, D] → [T, D]."""
        return x / torch.sqrt((x**2).mean(dim=1, keepdim=True) + self.eps) * self.weight


def rotate(x: Tensor, theta: float) -> Tensor:
    """x [T, E], row t turned as a vector of E/2 complex numbers x[i] + j·x[i + E/2], by e^(j·t·theta^(−2i/E)).

    Cosines and sines are rounded to float32, as the tables of Llama's implementations and colakit's are.
    """
    time, width = x.shape
    half = width // 2
    angles = torch.tensor(
        [[t * theta ** (-2.0 * i / width) for i in range(half)] for t in range(time)], dtype=torch.float64
    )
    turn = torch.complex(angles.cos().float().double(), angles.sin().float().double())
    turned = torch.complex(x[:, :half], x[:, half:]) * turn
    return torch.cat([turned.real, turned.imag], dim=1)


class SelfAttention(nn.Module):
    """Causal, with shared key and value heads."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        d, e = s.hidden_size, s.hidden_size // s.num_attention_heads
        self.s, self.head_dim = s, e
        self.q_proj = LowRank(d, s.num_attention_heads * e, s.rank, s.sigma)
        self.k_proj = LowRank(d, s.num_key_value_heads * e, s.rank, s.sigma)
        self.v_proj = LowRank(d, s.num_key_value_heads * e, s.rank, s.sigma)
        self.o_proj = LowRank(d, d, s.rank, s.sigma)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, D] → [T, D]."""
        time, e = len(x), self.head_dim
        mask = torch.zeros(time, time, dtype=torch.float64)
        for t in range(time):
            mask[t, t + 1 :] = -math.inf
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        heads = []
        for h in range(self.s.num_attention_heads):
            g = h * self.s.num_key_value_heads // self.s.num_attention_heads
            q_h = rotate(q[:, h * e : (h + 1) * e], self.s.rope_theta)
            k_g = rotate(k[:, g * e : (g + 1) * e], self.s.rope_theta)
            weights = torch.softmax(q_h @ k_g.T / math.sqrt(e) + mask, dim=1)
            heads.append(weights @ v[:, g * e : (g + 1) * e])
        return self.o_proj(torch.cat(heads, dim=1))


class FeedForward(nn.Module):
    """down(silu(gate(x)) ⊙ up(x))."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.gate_proj = LowRank(s.hidden_size, s.intermediate_size, s.rank, s.sigma)
        self.up_proj = LowRank(s.hidden_size, s.intermediate_size, s.rank, s.sigma)
        self.down_proj = LowRank(s.intermediate_size, s.hidden_size, s.down_rank, s.sigma)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, D] → [T, D]."""
        gate = self.gate_proj(x)
        return self.down_proj(gate * torch.sigmoid(gate) * self.up_proj(x))


class Layer(nn.Module):
    """Both sublayers, each behind its norm."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.input_layernorm = Norm(s.hidden_size, s.rms_norm_eps)
        self.self_attn = SelfAttention(s)
        self.post_attention_layernorm = Norm(s.hidden_size, s.rms_norm_eps)
        self.mlp = FeedForward(s)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, D] → [T, D]."""
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class ColaLlama(nn.Module):
    """The whole model; its head is the embedding where they are tied, else a low-rank projection of its own."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.embed_tokens = nn.Parameter(torch.empty(s.vocab_size, s.hidden_size, dtype=torch.float64))
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.num_hidden_layers))
        self.norm = Norm(s.hidden_size, s.rms_norm_eps)
        self.lm_head = None if s.tied else LowRank(s.hidden_size, s.vocab_size, s.rank, s.sigma)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, T] → logits [B, T, V], row by row."""
        return torch.stack([self._row(row) for row in tokens])

    def _row(self, tokens: Tensor) -> Tensor:
        x = torch.stack([self.embed_tokens[int(token)] for token in tokens])
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return x @ self.embed_tokens.T if self.lm_head is None else self.lm_head(x)
