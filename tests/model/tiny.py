"""Presets at a size that a test can afford, every dimension different, so that swapped axes fail."""

import copy
from dataclasses import replace

import torch
from torch import Tensor

from colakit.build import lm_config
from colakit.config.load import resolve
from colakit.config.presets import preset_names
from colakit.model.config import LMConfig
from colakit.model.lm import LM

PRESETS = preset_names()
MUON_PRESETS = [name for name in PRESETS if resolve(name).config.optim.optimizer == "muon"]

BATCH, TIME = 4, 9
SIZES = {
    "d_model": 48,  # rank 12
    "n_layers": 3,
    "n_heads": 6,  # head_dim 8
    "n_kv_heads": 2,  # width 16
    "d_ff": 44,  # rank 11; gate_up 88
    "vocab_size": 67,
    "seq_len": 13,
}


def tiny_config(preset: str = "cola-smollm2", *sets: str) -> LMConfig:
    """`preset` with all its choices and `SIZES`; `sets` (``norm=pre``) come last."""
    sizes = [f"model.{name}={value}" for name, value in SIZES.items()]
    resolved = resolve(preset, sets=[*sizes, *(f"model.{s}" for s in sets)])
    return lm_config(resolved.config.model, "sdpa")


def full_config(preset: str = "cola-smollm2", *sets: str) -> LMConfig:
    """`preset` as it is shipped."""
    return lm_config(resolve(preset, sets=[f"model.{s}" for s in sets]).config.model, "sdpa")


def without_dropout(config: LMConfig) -> LMConfig:
    """The same model with no dropout anywhere."""
    return replace(
        config,
        fan_dropout=0.0,
        fan_dropout_growth=0.0,
        post_attention_dropout=0.0,
        final_dropout=0.0,
        attention_dropout=0.0,
    )


def tiny_model(config: LMConfig, seed: int = 0, *, generic: bool = True) -> LM:
    """A float64 model. `generic` moves norms, biases and gates off their starting values, where errors could hide."""
    model = LM(config)
    model.init_weights(seed)
    model.double()
    if generic:
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim == 1:
                    p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def tiny_tokens(config: LMConfig, seed: int = 0, *, batch: int = BATCH, time: int = TIME) -> Tensor:
    """Random tokens [batch, time]."""
    return torch.randint(config.vocab_size, (batch, time), generator=torch.Generator().manual_seed(seed))


def published_gradients(model: LM) -> dict[str, Tensor]:
    """The gradients of `model` under the names of its state dict."""
    shadow = copy.deepcopy(model)
    with torch.no_grad():
        for p, q in zip(shadow.parameters(), model.parameters(), strict=True):
            assert q.grad is not None
            p.copy_(q.grad)
    return {name: t.detach() for name, t in shadow.state_dict().items()}


def published_leaves(model: LM) -> dict[str, Tensor]:
    """Copies of `model`'s published tensors, as leaves that collect gradients."""
    return {name: t.detach().clone().requires_grad_() for name, t in model.state_dict().items()}
