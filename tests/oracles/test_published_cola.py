"""Where colakit coincides with what others published: CoLA's Llama (`cola_llama`), and Llama itself by `transformers`.

`reference` checks every layer and choice by one set of functions; this checks whole models by structures that were not
made for colakit, into which its weights are carried by their public names.

colakit's model with ``norm = "pre"``, no norm of Q, K and V, no FAN and no dropout is CoLA's, with these differences:

- σ is GELU, after Algorithm 3; the published code has SiLU by default. `ColaLlama` takes either.
- every B has a bias; published projections have none, which is a bias of 0.
- gate and up are one low-rank layer of width 2·d_ff, so they share an A. A published model with two A's has no place
  here at the same rank; the other way, the A is copied to both.
- an untied head is a low-rank layer too (§6.2 of the paper); the published one is a full matrix, as the tied one is.
- the embedding is scaled by √D when it is read, and a tied head by 4/√D. A Llama does neither. The first scale is put
  into its embedding, E' = √D·E; a tied head then gives h·E'ᵀ = √D·h·Eᵀ, where colakit gives 4/√D·h·Eᵀ, and the
  quotient, 4/D, is put into the weight of the final norm, which multiplies h.

None of these changes what else is computed, so equal weights must give equal logits.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, silu
from transformers import LlamaConfig, LlamaForCausalLM

from colakit.model.config import LMConfig
from colakit.model.lm import LM
from tests.model.tiny import tiny_config, tiny_model, tiny_tokens, without_dropout
from tests.oracles.cola_llama import ColaLlama, Sizes

NORM_EPS = 0.02
"""Large, so that a lost or misplaced one shows."""


def published(linear: str, *, tied: bool) -> LMConfig:
    """The variant that others published, every size different: of heads 6, 3 and 8, of layers 4, 48, 44 and 67."""
    sets = (
        f"linear={linear}",
        "norm=pre",
        "fan=none",
        "n_kv_heads=3",
        "n_layers=4",
        f"norm_eps={NORM_EPS}",
        "rope_theta=50",
    )
    config = without_dropout(tiny_config("cola-smollm2", *sets, f"tie_embeddings={str(tied).lower()}"))
    assert config.qkv_norm == "none"
    return config


def made(config: LMConfig) -> tuple[LM, dict[str, Tensor]]:
    """A model with norms and biases off their starting values, and its public tensors."""
    model = tiny_model(config).eval()
    return model, {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def as_llama_reads_them(weights: dict[str, Tensor], config: LMConfig) -> dict[str, Tensor]:
    """`weights` with the scales of embedding and tied head in them."""
    scaled = {**weights, "tok_embed.weight": weights["tok_embed.weight"] * math.sqrt(config.d_model)}
    if config.tie_embeddings:
        scaled["norm.weight"] = weights["norm.weight"] * 4.0 / config.d_model
    return scaled


def carry(weights: dict[str, Tensor], config: LMConfig, model: ColaLlama) -> None:
    """Fill `model`, and be left with nothing."""
    left, d_ff = as_llama_reads_them(weights, config), config.d_ff
    state = {"embed_tokens": left.pop("tok_embed.weight"), "norm.weight": left.pop("norm.weight")}

    def take(ours: str, theirs: str, rows: slice = slice(None), *, keep: bool = False) -> None:
        for our, their in (("a", "A"), ("b", "B"), ("bias", "bias")):
            tensor = left[f"{ours}.{our}"] if keep else left.pop(f"{ours}.{our}")
            state[f"{theirs}.{their}"] = tensor if our == "a" else tensor[rows]

    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}", f"layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            take(f"{ours}.attention.{name}", f"{theirs}.self_attn.{name}")
        take(f"{ours}.mlp.gate_up_proj", f"{theirs}.mlp.gate_proj", slice(d_ff), keep=True)
        take(f"{ours}.mlp.gate_up_proj", f"{theirs}.mlp.up_proj", slice(d_ff, None))
        take(f"{ours}.mlp.down_proj", f"{theirs}.mlp.down_proj")
        state[f"{theirs}.input_layernorm.weight"] = left.pop(f"{ours}.attention_norm.weight")
        state[f"{theirs}.post_attention_layernorm.weight"] = left.pop(f"{ours}.mlp_norm.weight")
    if not config.tie_embeddings:
        take("lm_head", "lm_head")
    assert not left
    model.load_state_dict(state)


def sizes(config: LMConfig) -> Sizes:
    return Sizes(
        hidden_size=config.d_model,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        intermediate_size=config.d_ff,
        vocab_size=config.vocab_size,
        rank=config.rank_of(config.d_model),
        down_rank=config.rank_of(config.d_ff),
        rms_norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
        tied=config.tie_embeddings,
        sigma=gelu,
    )


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_pre_norm_model_is_the_published_cola(tied: bool) -> None:
    """Float64 on both sides, from the same rounded cosines: they differ by the order of sums, some 1e-14 per layer."""
    config = published("cola", tied=tied)
    model, weights = made(config)
    assert all(tensor.abs().min() > 0.0 for name, tensor in weights.items() if name.endswith(".bias"))
    llama = ColaLlama(sizes(config))
    carry(weights, config, llama)
    tokens = tiny_tokens(config)
    logits, expected = model(tokens), llama(tokens)
    torch.testing.assert_close(logits, expected, rtol=0.0, atol=1e-10)
    assert expected.std() > 0.05, "equal because there is nothing in it"


def test_what_is_said_to_differ_does() -> None:
    """SiLU for σ, no biases, an embedding as it stands: each alone gives other logits, far beyond the tolerance."""
    config = published("cola", tied=False)
    model, weights = made(config)
    tokens = tiny_tokens(config)
    ours = model(tokens)

    def logits(changed: dict[str, Tensor], s: Sizes) -> Tensor:
        llama = ColaLlama(s)
        carry(changed, config, llama)
        return llama(tokens)

    without_biases = {n: t * (0.0 if n.endswith(".bias") else 1.0) for n, t in weights.items()}
    unscaled = {**weights, "tok_embed.weight": weights["tok_embed.weight"] / math.sqrt(config.d_model)}
    for other in (
        logits(weights, replace(sizes(config), sigma=silu)),
        logits(without_biases, sizes(config)),
        logits(unscaled, sizes(config)),
    ):
        assert (other - ours).abs().max() > 1e-2


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_dense_pre_norm_model_is_llama(tied: bool) -> None:
    """`transformers`' own, untouched: where its weights are float64, it still norms, and makes angles, in float32.

    So both agree to float32's rounding of the nine norms and the angles, not to float64's: 1e-5, with logits near 1.
    """
    config = published("dense", tied=tied)
    model, weights = made(config)
    llama = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            intermediate_size=config.d_ff,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.seq_len,
            rms_norm_eps=config.norm_eps,
            rope_theta=config.rope_theta,
            tie_word_embeddings=tied,
            attn_implementation="sdpa",
        )
    ).double()
    llama.load_state_dict(in_llamas_words(weights, config))
    tokens = tiny_tokens(config)
    with torch.no_grad():
        expected = llama.eval()(tokens).logits
    torch.testing.assert_close(model(tokens), expected, rtol=0.0, atol=1e-5)
    assert expected.std() > 0.05


def in_llamas_words(weights: dict[str, Tensor], config: LMConfig) -> dict[str, Tensor]:
    """The state dict of a `LlamaForCausalLM`."""
    left = as_llama_reads_them(weights, config)
    state = {"model.embed_tokens.weight": left.pop("tok_embed.weight"), "model.norm.weight": left.pop("norm.weight")}
    state["lm_head.weight"] = (
        state["model.embed_tokens.weight"] if config.tie_embeddings else left.pop("lm_head.weight")
    )
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            state[f"{theirs}.self_attn.{name}.weight"] = left.pop(f"{ours}.attention.{name}.weight")
        gate, up = left.pop(f"{ours}.mlp.gate_up_proj.weight").split(config.d_ff)
        state |= {f"{theirs}.mlp.gate_proj.weight": gate, f"{theirs}.mlp.up_proj.weight": up}
        state[f"{theirs}.mlp.down_proj.weight"] = left.pop(f"{ours}.mlp.down_proj.weight")
        state[f"{theirs}.input_layernorm.weight"] = left.pop(f"{ours}.attention_norm.weight")
        state[f"{theirs}.post_attention_layernorm.weight"] = left.pop(f"{ours}.mlp_norm.weight")
    assert not left
    return state
