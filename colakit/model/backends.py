"""Causal attention, three ways that agree: flash-attn, PyTorch's SDPA, and Algorithm 4 in plain PyTorch as the oracle.

Each takes q [B, H, T, E] and k, v [B, K, T, E] with H a multiple of K; query head h reads key head h // (H / K). The
scale is 1/√E (eq. 9). `dropout` is the probability of dropping an attention weight; callers pass 0 in evaluation.

Shapes: B batch, H heads, K kv heads, T time, E head_dim.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def attention_backend(name: Literal["flash", "sdpa", "reference"]) -> Attend:
    """The backend of this name. Raises ImportError for ``flash`` where flash-attn is not installed."""
    if name == "flash":
        import flash_attn  # noqa: F401  (fails here, at construction, and not in the first step)

        return flash
    return {"sdpa": sdpa, "reference": reference}[name]


def flash(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """flash-attn's kernel: CUDA, in bfloat16 or float16 (float32 input goes through bfloat16). → [B, H, T, E]."""
    from flash_attn import flash_attn_func

    dtype = q.dtype if q.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
    q_, k_, v_ = (x.transpose(1, 2).to(dtype) for x in (q, k, v))  # [B, T, H, E]
    out: Tensor = flash_attn_func(q_, k_, v_, dropout_p=dropout, causal=True)
    return out.transpose(1, 2).to(q.dtype)


def sdpa(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """PyTorch's scaled_dot_product_attention. → [B, H, T, E]."""
    return F.scaled_dot_product_attention(
        q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
    )


def reference(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, *, block_q: int = 64, block_k: int = 64) -> Tensor:
    """Algorithm 4: tiles of Q against tiles of K and V with an online softmax. → [B, H, T, E].

    Erratum: Algorithm 4 starts l at −∞, which makes every output NaN (the first update of l is 0·∞). Here l starts at 0
    and m at −∞, and tiles that the causal mask hides whole are skipped, so no row meets an empty tile.
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    t, scale = q.shape[-2], q.shape[-1] ** -0.5
    rows = []
    for q_start in range(0, t, block_q):
        q_i = q[..., q_start : q_start + block_q, :]
        q_pos = torch.arange(q_start, q_start + q_i.shape[-2], device=q.device)
        m = q_i.new_full((*q_i.shape[:-1], 1), float("-inf"))
        l_i = torch.zeros_like(m)
        o = torch.zeros_like(q_i)
        for k_start in range(0, q_start + q_i.shape[-2], block_k):
            k_j, v_j = k[..., k_start : k_start + block_k, :], v[..., k_start : k_start + block_k, :]
            k_pos = torch.arange(k_start, k_start + k_j.shape[-2], device=q.device)
            s = (q_i @ k_j.transpose(-1, -2)) * scale
            s = s.masked_fill(k_pos > q_pos[:, None], float("-inf"))
            m_new = torch.maximum(m, s.amax(dim=-1, keepdim=True))
            p, shrink = (s - m_new).exp(), (m - m_new).exp()
            l_i = shrink * l_i + p.sum(dim=-1, keepdim=True)
            o = shrink * o + F.dropout(p, dropout) @ v_j
            m = m_new
        rows.append(o / l_i)
    return torch.cat(rows, dim=-2)
