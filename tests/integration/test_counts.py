"""The closed formulas against the built model and PyTorch's own counter: equal, without tolerance."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from colakit.analysis.flops import forward_flops
from colakit.analysis.params import total_params
from colakit.build import lm_config
from colakit.config.load import resolve
from colakit.config.presets import preset_names
from colakit.config.schema import ModelConfig
from colakit.model.lm import LM

VARIANTS = (
    (),
    ("model.norm=pre",),
    ("model.norm=post",),
    ("model.norm=listing",),
    ("model.qkv_norm=l2",),
    ("model.n_kv_heads=12",),
    ("model.tie_embeddings=true",),
)


def build(model: ModelConfig) -> LM:
    with torch.device("meta"):
        return LM(lm_config(model, "sdpa"))


@pytest.mark.parametrize("preset", preset_names())
def test_parameters_equal_the_built_model(preset: str) -> None:
    for sets in VARIANTS:
        model = resolve(preset, sets=list(sets)).config.model
        assert total_params(model) == sum(p.numel() for p in build(model).parameters()), sets


@pytest.mark.parametrize("preset", preset_names())
def test_forward_flops_equal_pytorchs_counter(preset: str) -> None:
    """On the math attention path, which is the one whose products the counter sees."""
    sets = ["model.seq_len=40", "model.n_layers=2", "model.vocab_size=700", "model.remat=none"]
    model = resolve(preset, sets=sets).config.model
    lm = build(model)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        lm(torch.zeros(3, 40, dtype=torch.int64, device="meta"))
    counted = forward_flops(model, 3)
    assert sum(c.flops for c in counted.components) == counter.get_total_flops()
