"""Causal attention, three ways that agree: flash-attn, PyTorch's SDPA, and Algorithm 4 in plain PyTorch as the oracle.

Each takes q [B, H, T, E] and k, v [B, K, T, E] with H a multiple of K; query head h reads key head h // (H / K). The
scale is 1/√E (eq. 9). `dropout` is the probability of dropping an attention weight; callers pass 0 in evaluation. With
`documents` a query reads keys of its own document alone: by one kernel for sequences of any lengths where there is one,
else document by document, which on a CPU takes less time than a mask, and keeps no n² of anything.

Shapes: B batch, H heads, K kv heads, T time, E head_dim.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from colakit.model.documents import Documents

Attend = Callable[[Tensor, Tensor, Tensor, float, Documents | None], Tensor]


def attention_backend(name: Literal["flash", "sdpa", "reference"]) -> Attend:
    """The backend of this name. Raises ImportError for ``flash`` where flash-attn is not installed."""
    if name == "flash":
        _flash_attn()  # fails here, at construction, and not in the first step
        return flash
    return {"sdpa": sdpa, "reference": reference}[name]


def outside_graphs(attend: Attend) -> Attend:
    """`attend` for blocks that are compiled: where there are documents, it is called and not compiled.

    Their lengths are numbers, which would become part of the compiled code, of another with each batch.
    """
    uncompiled = torch.compiler.disable(attend)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def wrapped(q: Tensor, k: Tensor, v: Tensor, dropout: float, documents: Documents | None) -> Tensor:
        out: Tensor = (attend if documents is None else uncompiled)(q, k, v, dropout, documents)
        return out

    return wrapped


def flash(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, documents: Documents | None = None) -> Tensor:
    """flash-attn's kernel: CUDA, in bfloat16 or float16 (float32 input goes through bfloat16). → [B, H, T, E]."""
    library = _flash_attn()
    exact = torch.are_deterministic_algorithms_enabled()  # its backward pass adds up in any order else
    dtype = q.dtype if q.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
    q_, k_, v_ = (x.transpose(1, 2).to(dtype) for x in (q, k, v))  # [B, T, H, E]
    if documents is None:
        out: Tensor = library.flash_attn_func(q_, k_, v_, dropout_p=dropout, causal=True, deterministic=exact)
    else:
        bounds = documents.cu_seqlens
        packed = (x.flatten(0, 1) for x in (q_, k_, v_))  # [B·T, H, E]
        longest = documents.max_len
        flat = library.flash_attn_varlen_func(
            *packed, bounds, bounds, longest, longest, dropout_p=dropout, causal=True, deterministic=exact
        )
        out = flat.view(q_.shape)
    return out.transpose(1, 2).to(q.dtype)


def _flash_attn() -> Any:  # Any: it has no types
    """flash-attn. In a ``try``, so that `transformers` does not demand it of who loads an exported model."""
    try:
        import flash_attn
    except ImportError as error:
        raise ImportError("flash-attn is not installed, or not for this PyTorch") from error
    return flash_attn


def sdpa(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, documents: Documents | None = None) -> Tensor:
    """PyTorch's scaled_dot_product_attention; for `documents` on CUDA its varlen_attn, where that can run.

    That is in bfloat16 and float16 and without dropout. → [B, H, T, E].
    """
    if documents is None:
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        )
    if q.is_cuda and dropout == 0.0:
        # Autocast knows SDPA and not varlen_attn: the dtype it would choose.
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else q.dtype
        q_, k_, v_ = q.to(dtype), k.to(dtype), v.to(dtype)
        if _can_use_varlen(q_, k_, v_):
            return _varlen(q_, k_, v_, documents)
    return _each_document(q, k, v, dropout, documents)


def see(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, dropout: float = 0.0) -> Tensor:
    """SDPA of new tokens q [B, H, T, E] and of all tokens k, v [B, K, S, E], for any backend. → [B, H, T, E].

    `visible` [B, 1, T, S] bool says what each sees; None, for a single new token: all.
    """
    assert visible is not None or q.shape[2] == 1
    is_shared = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout, enable_gqa=is_shared)


def _each_document(q: Tensor, k: Tensor, v: Tensor, dropout: float, documents: Documents) -> Tensor:
    """`sdpa` of one document after another. → [B, H, T, E], laid out as [B, T, H, E]."""
    outs = []
    for *row, lengths in zip(q, k, v, documents.lengths, strict=True):
        # `split`, whose gradients are joined once: those of slices are each as large as the row.
        for q_d, k_d, v_d in zip(*(x.split(lengths, dim=1) for x in row), strict=True):  # [H, L, E]
            out = sdpa(q_d.unsqueeze(0), k_d.unsqueeze(0), v_d.unsqueeze(0), dropout)
            outs.append(out.squeeze(0).transpose(0, 1))
    return torch.cat(outs).view(q.transpose(1, 2).shape).transpose(1, 2)


def _can_use_varlen(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether torch's varlen_attn takes them: its kernel is that of SDPA's flash path, without that path's padding."""
    if _torch_varlen() is None or q.dtype not in (torch.bfloat16, torch.float16) or q.shape[-1] % 8 != 0:
        return False
    params = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, True, q.shape[1] != k.shape[1])
    return torch.backends.cuda.can_use_flash_attention(params)


@cache
def _torch_varlen() -> Callable[..., Any] | None:  # Any: with return_aux, a tuple
    """torch's varlen_attn; None where it is absent, or older than the arguments used here."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None


def _varlen(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """torch's varlen_attn. → [B, H, T, E], laid out as [B, T, H, E]."""
    varlen = _torch_varlen()
    assert varlen is not None
    options: dict[str, bool] = {}
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in inspect.signature(varlen).parameters:
            options["enable_gqa"] = True
        else:  # torch before 2.12
            group = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    bounds, longest = documents.cu_seqlens, documents.max_len
    packed = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # [B·T, H, E]
    out: Tensor = varlen(*packed, bounds, bounds, longest, longest, window_size=(-1, 0), **options)
    return out.view(q.transpose(1, 2).shape).transpose(1, 2)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout: float = 0.0,
    documents: Documents | None = None,
    *,
    block_q: int = 64,
    block_k: int = 64,
) -> Tensor:
    """Algorithm 4: tiles of Q against tiles of K and V with an online softmax. → [B, H, T, E].

    Erratum: Algorithm 4 starts l at −∞, which makes every output NaN (the first update of l is 0·∞). Here l starts at 0
    and m at −∞, and tiles that the causal mask hides whole are skipped. A tile may still hold nothing for a row, only
    other documents: scores are hidden by the lowest finite number, not by −∞, so that what the row gathers there is no
    NaN, and is multiplied by exactly 0 when it meets its own document.
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    t, scale = q.shape[-2], q.shape[-1] ** -0.5
    document = None if documents is None else (documents.positions == 0).cumsum(dim=1)[:, None]  # [B, 1, T]
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
            hidden = k_pos > q_pos[:, None]
            if document is not None:
                hidden = hidden | (document[..., q_pos, None] != document[..., None, k_pos])  # [B, 1, block_q, block_k]
            s = s.masked_fill(hidden, torch.finfo(s.dtype).min)
            m_new = torch.maximum(m, s.amax(dim=-1, keepdim=True))
            p, shrink = (s - m_new).exp(), (m - m_new).exp()
            l_i = shrink * l_i + p.sum(dim=-1, keepdim=True)
            o = shrink * o + F.dropout(p, dropout) @ v_j
            m = m_new
        rows.append(o / l_i)
    return torch.cat(rows, dim=-2)
