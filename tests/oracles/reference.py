"""Slow, obvious versions of every layer, written from the paper with loops over positions and heads: the oracles.

Nothing here comes from colakit. Every function works on float64 tensors and is differentiable, so that gradients can be
compared too. `p` is a mapping from public parameter names (``q_proj.a``) to tensors; `sub` descends into it.

Shapes: B batch, T time, D d_model, H heads, K kv heads, E head_dim, F d_ff, R rank, V vocab.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Params = Mapping[str, Tensor]
Function = Callable[[Tensor], Tensor]


def sub(p: Params, prefix: str) -> dict[str, Tensor]:
    """The entries of `p` under ``prefix.``, without it."""
    return {name[len(prefix) + 1 :]: t for name, t in p.items() if name.startswith(prefix + ".")}


def each_vector(f: Function, x: Tensor) -> Tensor:
    """Apply `f` to every vector x[..., :] by itself."""
    flat = x.reshape(-1, x.shape[-1])
    return torch.stack([f(v) for v in flat]).reshape(*x.shape[:-1], -1)


# Activations and norms


def gelu(x: Tensor) -> Tensor:
    """x·Φ(x), the exact GELU."""
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


def silu(x: Tensor) -> Tensor:
    """x·sigmoid(x)."""
    return x / (1.0 + torch.exp(-x))


def rms_norm(v: Tensor, weight: Tensor, eps: float) -> Tensor:
    """v / √(mean(v²) + eps) · weight, for one vector."""
    mean_square = sum(c * c for c in v) / len(v)
    return v / torch.sqrt(mean_square + eps) * weight


def l2_norm(v: Tensor) -> Tensor:
    """v / ‖v‖₂, for one vector."""
    return v / torch.sqrt((v * v).sum())


# Projections of one vector


def dense(x: Tensor, weight: Tensor) -> Tensor:
    """W·x, one row at a time."""
    return torch.stack([(row * x).sum() for row in weight])


def cola(x: Tensor, a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
    """Algorithm 3: B·σ(A·x) + bias."""
    return dense(gelu(dense(x, a)), b) + bias


def cola_fan(x: Tensor, p: Params) -> Tensor:
    """Algorithm 1 without dropout: [cos(p_proj), sin(p_proj), np_proj]."""
    p_proj = cola(x, p["a_p"], p["b_p"], p["bias_p"])
    np_proj = cola(x, p["a_np"], p["b_np"], p["bias_np"])
    return torch.cat([torch.cos(p_proj), torch.sin(p_proj), np_proj])


def fan(x: Tensor, w_p: Tensor, w_n: Tensor, bias: Tensor) -> Tensor:
    """§2.3.3: [cos(W_p·x), sin(W_p·x), W_n·x + b]."""
    periodic = dense(x, w_p)
    return torch.cat([torch.cos(periodic), torch.sin(periodic), dense(x, w_n) + bias])


def project(x: Tensor, p: Params) -> Tensor:
    """Whichever of the three projections the names in `p` say, for one vector (products by rows, for speed, as `@`)."""
    if "weight" in p:
        return p["weight"] @ x
    if "a" in p:
        return p["b"] @ gelu(p["a"] @ x) + p["bias"]
    periodic = p["b_p"] @ gelu(p["a_p"] @ x) + p["bias_p"]
    other = p["b_np"] @ gelu(p["a_np"] @ x) + p["bias_np"]
    return torch.cat([torch.cos(periodic), torch.sin(periodic), other])


# Positions


def rope(v: Tensor, position: int, theta: float, *, table: torch.dtype = torch.float64) -> Tensor:
    """Turn the pair (v[i], v[i + E/2]) by position · theta^(−2i/E); cos and sin are rounded to `table`."""
    half = len(v) // 2
    out: list[Any] = [None] * len(v)
    for i in range(half):
        angle = position * theta ** (-2.0 * i / len(v))
        cos = torch.tensor(math.cos(angle), dtype=torch.float64).to(table).double()
        sin = torch.tensor(math.sin(angle), dtype=torch.float64).to(table).double()
        out[i] = v[i] * cos - v[i + half] * sin
        out[i + half] = v[i] * sin + v[i + half] * cos
    return torch.stack(out)


# Attention


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Eq. 9 over the past: q [H, T, E], k and v [K, T, E] → [H, T, E]; head h reads key head h // (H/K)."""
    heads, time, width = q.shape
    shared_by = heads // k.shape[0]
    out = []
    for h in range(heads):
        g = h // shared_by
        for t in range(time):
            scores = [(q[h, t] * k[g, s]).sum() / math.sqrt(width) for s in range(t + 1)]
            weights = torch.exp(torch.stack(scores) - max(scores))
            weights = weights / weights.sum()
            out.append(sum(w * v[g, s] for s, w in enumerate(weights)))
    return torch.stack(out).reshape(heads, time, width)


def algorithm_4(q: Tensor, k: Tensor, v: Tensor, *, block: int, l_start: float) -> Tensor:
    """Algorithm 4, line by line as printed, without a mask: q, k, v [T, E] → [T, E]. It prints l_start = −∞."""
    out = []
    for q_i in torch.split(q, block):
        o = torch.zeros_like(q_i)
        l_i = torch.full((len(q_i), 1), l_start, dtype=q.dtype)
        m_i = torch.full((len(q_i), 1), -math.inf, dtype=q.dtype)
        for k_j, v_j in zip(torch.split(k, block), torch.split(v, block), strict=True):
            s_ij = q_i @ k_j.T / math.sqrt(q.shape[-1])
            m_ij = torch.maximum(m_i, s_ij.max(dim=1, keepdim=True).values)
            p_ij = torch.exp(s_ij - m_ij)
            l_i = torch.exp(m_i - m_ij) * l_i + p_ij.sum(dim=1, keepdim=True)
            o = torch.exp(m_i - m_ij) * o + p_ij @ v_j
            m_i = m_ij
        out.append(o / l_i)
    return torch.cat(out)


def mha(x: Tensor, p: Params, c: Any) -> Tensor:
    """MHA_QKV (eq. 3) of x [B, T, D] with RoPE, shared key heads and, in ATF, FAN features first. `c`: the sizes."""

    def normed(v: Tensor, name: str) -> Tensor:
        if c.qkv_norm == "rms":
            return rms_norm(v, p[f"{name}.weight"], c.norm_eps)
        return l2_norm(v) if c.qkv_norm == "l2" else v

    out = []
    for sequence in x:
        if c.fan == "input":
            f = sub(p, "features")
            sequence = each_vector(lambda v, f=f: fan(v, f["w_p"], f["w_n"], f["bias"]), sequence)
        q, k, v = (each_vector(lambda u, n=n: project(u, sub(p, n)), sequence) for n in ("q_proj", "k_proj", "v_proj"))
        e = c.d_model // c.n_heads

        def head(y: Tensor, h: int, t: int, e: int = e) -> Tensor:
            return y[t, h * e : (h + 1) * e]

        def turned(y: Tensor, h: int, t: int, name: str) -> Tensor:
            # The model stores its cosines in float32.
            return rope(normed(head(y, h, t), name), t, c.rope_theta, table=torch.float32)

        times = range(len(sequence))
        qs = torch.stack([torch.stack([turned(q, h, t, "q_norm") for t in times]) for h in range(c.n_heads)])
        ks = torch.stack([torch.stack([turned(k, h, t, "k_norm") for t in times]) for h in range(c.n_kv_heads)])
        vs = torch.stack([torch.stack([normed(head(v, h, t), "v_norm") for t in times]) for h in range(c.n_kv_heads)])
        o = causal_attention(qs, ks, vs)  # [H, T, E]
        joined = torch.stack([torch.cat([o[h, t] for h in range(c.n_heads)]) for t in times])
        out.append(each_vector(lambda u: project(u, sub(p, "o_proj")), joined))
    return torch.stack(out)


def swiglu(v: Tensor, p: Params) -> Tensor:
    """down(silu(gate(v)) ⊙ up(v)) for one vector; the first half of gate_up_proj is the gate."""
    gate_up = project(v, sub(p, "gate_up_proj"))
    half = len(gate_up) // 2
    return project(silu(gate_up[:half]) * gate_up[half:], sub(p, "down_proj"))


# Blocks: the equations, with functions for their parts


def pre_norm(x: Tensor, mha: Function, ffn: Function, norm_1: Function, norm_2: Function) -> Tensor:
    """Eq. 1, Y = SubLayer(Norm(X)) + X, for both sublayers."""
    y = mha(norm_1(x)) + x
    return ffn(norm_2(y)) + y


def post_norm(x: Tensor, mha: Function, ffn: Function, norm_1: Function, norm_2: Function) -> Tensor:
    """Eq. 2, Y = Norm(SubLayer(X) + X), for both sublayers."""
    y = norm_1(mha(x) + x)
    return norm_2(ffn(y) + y)


def hybrid_norm(x: Tensor, mha: Function, ffn: Function, norm: Function) -> Tensor:
    """Eq. 4 and 5."""
    y = mha(x) + x
    return ffn(norm(y)) + norm(y)


def hybrid_norm_first(x: Tensor, mha: Function, ffn: Function, norm_1: Function, norm_2: Function) -> Tensor:
    """Eq. 6 and 7."""
    y_0 = mha(norm_1(x)) + x
    return ffn(norm_2(y_0)) + y_0


def listing(x: Tensor, mha: Function, ffn: Function, ffn_norm: Function, post_ffn_norm: Function, g: Tensor) -> Tensor:
    """Eq. 4, then the four lines of §2.1.1."""
    x = mha(x) + x
    ffn_input = ffn_norm(x)
    ffn_out = ffn(ffn_input)
    x = x + ffn_out / (1.0 + torch.exp(-g))
    return post_ffn_norm(x)


def block(x: Tensor, p: Params, c: Any, *, first: bool) -> Tensor:
    """One block on x [B, T, D], by `c.norm`."""

    def attention(y: Tensor) -> Tensor:
        return mha(y, sub(p, "attention"), c)

    def ffn(y: Tensor) -> Tensor:
        return each_vector(lambda v: swiglu(v, sub(p, "mlp")), y)

    def norm(name: str) -> Function:
        return lambda y: each_vector(lambda v: rms_norm(v, p[f"{name}.weight"], c.norm_eps), y)

    if c.norm == "pre":
        return pre_norm(x, attention, ffn, norm("attention_norm"), norm("mlp_norm"))
    if c.norm == "post":
        return post_norm(x, attention, ffn, norm("attention_norm"), norm("mlp_norm"))
    if c.norm == "listing":
        gate = p["gated_residual.gate"]
        return listing(x, attention, ffn, norm("mlp_norm"), norm("post_mlp_norm"), gate)
    if first:
        return hybrid_norm_first(x, attention, ffn, norm("attention_norm"), norm("mlp_norm"))
    return hybrid_norm(x, attention, ffn, norm("mlp_norm"))


def lm(tokens: Tensor, p: Params, c: Any) -> Tensor:
    """tokens [B, T] → logits [B, T, V]."""
    table = p["tok_embed.weight"]
    x = torch.stack([torch.stack([table[int(i)] * math.sqrt(c.d_model) for i in row]) for row in tokens])
    for depth in range(c.n_layers):
        x = block(x, sub(p, f"blocks.{depth}"), c, first=depth == 0)
    x = each_vector(lambda v: rms_norm(v, p["norm.weight"], c.norm_eps), x)
    if c.tie_embeddings:
        return each_vector(lambda v: table @ v * 4 / math.sqrt(c.d_model), x)  # scaled: see the README
    return each_vector(lambda v: project(v, sub(p, "lm_head")), x)


# Optimizers, one matrix at a time


JORDAN = (3.4445, -4.7750, 2.0315)


def newton_schulz(m: Tensor, steps: int, coefficients: tuple[float, float, float] = JORDAN) -> Tensor:
    """Eq. 14 and 15 for one matrix as it stands."""
    a, b, c = coefficients
    x = m / math.sqrt(sum(float(entry) ** 2 for entry in m.flatten()))
    for _ in range(steps):
        s = x @ x.T
        x = a * x + b * (s @ x) + c * (s @ s @ x)
    return x


class SlowMuon:
    """Muon for one matrix held alone: eq. 10–12, the scale of its update and decoupled decay."""

    def __init__(
        self,
        w: Tensor,
        *,
        lr: float,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
        ns_steps: int,
        ns_coefficients: tuple[float, float, float],
        update_scaling: str,
    ) -> None:
        self.w = w.clone()
        self.m = torch.zeros_like(w)
        self.lr, self.momentum, self.nesterov, self.weight_decay = lr, momentum, nesterov, weight_decay
        self.ns = ns_steps, ns_coefficients
        rows, columns = w.shape
        scales = {"match_rms_adamw": 0.2 * math.sqrt(max(rows, columns)), "original": max(1.0, rows / columns) ** 0.5}
        self.scale = scales[update_scaling]

    def step(self, grad: Tensor) -> None:
        """One update."""
        self.m = self.momentum * self.m + grad
        direction = grad + self.momentum * self.m if self.nesterov else self.m
        decayed = self.w - self.lr * self.weight_decay * self.w
        self.w = decayed - self.lr * self.scale * newton_schulz(direction, *self.ns)


class SlowAdamW:
    """AdamW (Loshchilov & Hutter) for one tensor."""

    def __init__(self, w: Tensor, *, lr: float, betas: Sequence[float], eps: float, weight_decay: float) -> None:
        self.w = w.clone()
        self.m, self.v, self.t = torch.zeros_like(w), torch.zeros_like(w), 0
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay

    def step(self, grad: Tensor) -> None:
        """One update."""
        b1, b2 = self.betas
        self.t += 1
        self.m = b1 * self.m + (1 - b1) * grad
        self.v = b2 * self.v + (1 - b2) * grad * grad
        m_hat, v_hat = self.m / (1 - b1**self.t), self.v / (1 - b2**self.t)
        self.w = self.w - self.lr * self.weight_decay * self.w - self.lr * m_hat / (torch.sqrt(v_hat) + self.eps)
