"""What the checks ask of the shipped presets: sizes, optimizer, tokenizer, and how much a token costs."""

from functools import cache

from colakit.analysis.flops import step_flops
from colakit.config.load import resolve
from colakit.config.schema import RunConfig

CHEAPEST_PRESET = "cola-smollm2"
"""The row of Table 4 with the fewest operations: a lower bound where the paper names no model."""


@cache
def config(preset: str | None) -> RunConfig:
    """The resolved configuration of a shipped preset."""
    assert preset is not None
    return resolve(preset).config


@cache
def training_flops_per_token(preset: str) -> float:
    """Forward and backward of one token at the paper's sizes, causal attention skipping its masked half."""
    step = step_flops(config(preset))
    return step.causal_model_flops / step.tokens


def uses_muon(preset: str | None) -> bool:
    """Whether Muon trains it."""
    return config(preset).optim.optimizer == "muon"


def differ_by_optimizer(first: str | None, second: str | None) -> bool:
    """Whether two presets are one model on the same tokens, one trained by Muon and one without."""
    a, b = config(first), config(second)
    return a.model == b.model and a.data == b.data and a.optim.optimizer != b.optim.optimizer
