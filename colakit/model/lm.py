"""The language model: embedding, blocks, final norm, head; and the one place where a configuration chooses the parts.

Shapes: B batch, T time, D d_model, V vocab.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colakit.model.attention import Attention
from colakit.model.backends import attention_backend, outside_graphs
from colakit.model.block import Block, Context, GatedResidual, RunBlock
from colakit.model.cache import Cached, Keeps, KeyValues, NoCache, visible_tokens
from colakit.model.config import LMConfig
from colakit.model.documents import Documents, Packed
from colakit.model.init import HEAD_GAIN, init_embedding, init_fan, init_projections
from colakit.model.linear import FAN, CoLA, Dense, ParamRole, Projections, low_rank_projections
from colakit.model.mlp import MLP
from colakit.model.naming import publish, restore
from colakit.model.norm import L2Norm, RMSNorm
from colakit.model.remat import cola_m, plain
from colakit.model.rope import Rotary

TIED_SELF_LOGIT = 4.0
"""About what a tied head gives, at the start, to the token being read, whose own embedding the stream still is.

Without a scale this is √d_model, and the first loss twice that of a uniform guess. With 1 the logits grow too slowly.
"""


class LM(nn.Module):
    """A decoder-only transformer. `forward` gives logits; training takes `hidden` and `logit_factors`."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embed = nn.Embedding(config.vocab_size, config.d_model)
        rope = Rotary(config.head_dim, config.seq_len, config.rope_theta)
        self.blocks = nn.ModuleList(_block(config, depth, rope) for depth in range(config.n_layers))
        self.rope = rope  # shared with every block
        self.norm = _norm(config)
        self.final_dropout = nn.Dropout(config.final_dropout)
        self.output = None if config.tie_embeddings else _head(config)
        self.register_state_dict_post_hook(publish)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.register_load_state_dict_pre_hook(restore)  # type: ignore[no-untyped-call]
        self.run_block: RunBlock = cola_m if config.remat == "cola_m" else plain
        self._compiled_block: RunBlock | None = None

    def hidden(self, tokens: Tensor, documents: Documents | None = None) -> Tensor:
        """tokens [B, T] int64 → the normalised last hidden states [B, T, D].

        With `documents`, each document is read as if it stood alone: it attends to itself, from position 0 on. Without,
        a row is read as one. Raises ValueError where `documents` are those of another shape than `tokens`.
        """
        packed = None
        if documents is not None:
            if documents.positions.shape != tokens.shape:
                shapes = f"{list(documents.positions.shape)}, the tokens {list(tokens.shape)}"
                raise ValueError(f"the documents lie in a batch of shape {shapes}")
            packed = Packed(documents, self.rope.at(documents.positions))
        return self._read(tokens, packed)

    def extend(
        self, tokens: Tensor, cache: KeyValues, real: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """The next tokens [B, T] of rows of which `cache` holds the beginning → their last hidden states [B, T, D].

        `real` [B, S] bool tells what is not padding, of what the cache holds and of `tokens`; unset: everything.
        `positions` [T] or [B, T] int64 are those of `tokens`, each below ``seq_len``; unset: the count of real tokens.
        """
        past, n_new = cache.get_seq_length(), tokens.shape[1]
        if positions is None:
            if real is None:
                positions = torch.arange(past, past + n_new, device=tokens.device)
            else:
                positions = (real.cumsum(dim=1) - 1).clamp(min=0)[:, past:]
        if real is None and past and n_new > 1:
            real = torch.ones(1, past + n_new, dtype=torch.bool, device=tokens.device)
        visible = visible_tokens(n_new, real) if real is not None else None
        return self.extend_at(tokens, cache, positions, visible)

    def extend_at(self, tokens: Tensor, cache: Keeps, positions: Tensor, visible: Tensor | None) -> Tensor:
        """As `extend`, with `positions` [T] or [B, T] int64 and what each token sees, [B, 1, T, S] bool, as given."""
        return self._read(tokens, Cached(cache, self.rope.at(positions), visible))

    def _read(self, tokens: Tensor, context: Context) -> Tensor:
        # Rows of length 1 are scaled to a mean square of 1 here, so that Adam's steps are large beside them and one
        # matrix can serve as embedding and as head.
        x: Tensor = self.tok_embed(tokens) * math.sqrt(self.config.d_model)
        # Without gradients nothing is kept for a backward pass; and a cache would keep what is computed again twice.
        keeps = isinstance(context, Cached) and not isinstance(context.cache, NoCache)
        run_block = self.run_block if torch.is_grad_enabled() and not keeps else plain
        if self._compiled_block is not None and self.training:
            run_block = self._compiled_block
        for block in self.blocks:
            x = block(x, context, run_block)
        out: Tensor = self.final_dropout(self.norm(x))
        return out

    def logit_factors(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """hidden [..., D] → of the product that gives logits: input [..., K], weight [V, K], and bias [V] or None."""
        if self.output is None:
            return hidden * (TIED_SELF_LOGIT / math.sqrt(self.config.d_model)), self.tok_embed.weight, None
        return self.output.last_factors(hidden)

    def head(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] → logits [..., V]."""
        return F.linear(*self.logit_factors(hidden))

    def forward(self, tokens: Tensor, documents: Documents | None = None) -> Tensor:
        """tokens [B, T] int64 → logits [B, T, V] of the token that follows each; `documents` as for `hidden`."""
        return self.head(self.hidden(tokens, documents))

    def compile_blocks(self) -> None:
        """Have torch compile the blocks, one piece of code for all that are alike, when they are next trained.

        In evaluation, where shapes differ from call to call, they go on as before.
        """
        self._compiled_block = torch.compile(self.run_block)
        attend = outside_graphs(attention_backend(self.config.attention))
        for module in self.modules():
            if isinstance(module, Attention):
                module.attend = attend

    def run_eagerly(self) -> None:
        """Take back `compile_blocks`."""
        self._compiled_block = None

    @contextmanager
    def eagerly(self) -> Iterator[None]:
        """Inside, training does not run compiled blocks either."""
        compiled, self._compiled_block = self._compiled_block, None
        try:
            yield
        finally:
            self._compiled_block = compiled

    @property
    def is_compiled(self) -> bool:
        """Whether training runs compiled blocks."""
        return self._compiled_block is not None

    def init_weights(self, seed: int) -> None:
        """Draw every parameter from a generator of its own, so that no global random state is touched."""
        generator = torch.Generator(device=self.tok_embed.weight.device).manual_seed(seed)
        init_embedding(self.tok_embed.weight, generator)
        residual_gain = 1.0 / math.sqrt(2 * self.config.n_layers)
        for module in self.modules():
            if isinstance(module, Projections):
                writes_residual = not module.parts.keys().isdisjoint({"o_proj", "down_proj"})
                gain = HEAD_GAIN if module is self.output else residual_gain if writes_residual else 1.0
                init_projections(module, gain, generator)
            elif isinstance(module, FAN):
                init_fan(module, generator)

    def param_roles(self) -> dict[str, ParamRole]:
        """The role of every parameter, under the names of `named_parameters`."""
        roles: dict[str, ParamRole] = {}
        for path, module in self.named_modules():
            prefix = f"{path}." if path else ""
            if isinstance(module, Projections | FAN):
                own = module.roles()
                if module is self.output:
                    own = {n: r._replace(role="head") if r.role == "matrix" else r for n, r in own.items()}
                roles |= {prefix + name: role for name, role in own.items()}
            elif isinstance(module, RMSNorm):
                roles[prefix + "weight"] = ParamRole("norm")
            elif isinstance(module, GatedResidual):
                roles[prefix + "gate"] = ParamRole("gate")
        roles["tok_embed.weight"] = ParamRole("embedding")
        return roles


def _norm(config: LMConfig) -> RMSNorm:
    return RMSNorm(config.d_model, eps=config.norm_eps)


def _head(config: LMConfig) -> Dense | CoLA:
    parts = {"lm_head": config.vocab_size}
    if config.linear == "dense":
        return Dense(config.d_model, parts)
    return CoLA(config.d_model, parts, config.rank_of(config.d_model))


def _projections(config: LMConfig, d_in: int, parts: dict[str, int], *, matrices_per_part: int = 1) -> Projections:
    if config.linear == "dense":
        return Dense(d_in, parts, matrices_per_part)
    return CoLA(d_in, parts, config.rank_of(d_in))


def _qkv(config: LMConfig, depth: int) -> Projections:
    kv_width = config.n_kv_heads * config.head_dim
    parts = {"q_proj": config.d_model, "k_proj": kv_width, "v_proj": kv_width}
    if config.fan != "qkv":
        return _projections(config, config.d_model, parts)
    return low_rank_projections(
        config.d_model,
        parts,
        config.rank_of(config.d_model),
        fan_ratio=config.fan_ratio,
        dropout=config.fan_dropout_at(depth),
    )


def _qkv_norm(config: LMConfig) -> nn.Module:
    if config.qkv_norm == "rms":
        return RMSNorm(config.head_dim, eps=config.norm_eps)
    return L2Norm() if config.qkv_norm == "l2" else nn.Identity()


def _block(config: LMConfig, depth: int, rope: Rotary) -> Block:
    d, d_ff = config.d_model, config.d_ff
    attention = Attention(
        depth=depth,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        features=FAN(d, config.fan_ratio) if config.fan == "input" else nn.Identity(),
        qkv=_qkv(config, depth),
        o_proj=_projections(config, d, {"o_proj": d}),
        norms=(_qkv_norm(config), _qkv_norm(config), _qkv_norm(config)),
        rope=rope,
        attend=attention_backend(config.attention),
        attention_dropout=config.attention_dropout,
        output_dropout=config.post_attention_dropout,
    )
    gate_up = _projections(config, d, {"gate_up_proj": 2 * d_ff}, matrices_per_part=2)
    mlp = MLP(gate_up, _projections(config, d_ff, {"down_proj": d}))
    return Block(attention, mlp, placement=config.norm, first=depth == 0, norm=partial(_norm, config))
