"""Two-layer models memorise a batch, with either optimizer and in every norm placement."""

from dataclasses import replace

import pytest
import torch

from colakit.config.schema import OptimConfig
from colakit.loss import loss_sums
from colakit.model.lm import LM
from colakit.optim.combined import CombinedOptimizer
from tests.model.tiny import tiny_config, tiny_tokens, without_dropout


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("preset", "sets"),
    [
        ("original", ()),
        ("cola-smollm2", ()),
        ("cola-m", ("norm=pre",)),
        ("cola-fan", ("norm=listing",)),
        ("cola-fan-atf", ("norm=post",)),
        ("refined-tied", ()),
    ],
)
def test_a_two_layer_model_memorises_a_batch(preset: str, sets: tuple[str, ...], optimizer: str) -> None:
    torch.manual_seed(0)
    config = replace(without_dropout(tiny_config(preset, *sets)), n_layers=2)
    model = LM(config)
    model.init_weights(0)
    optim = CombinedOptimizer(
        model,
        model.param_roles(),
        OptimConfig(optimizer=optimizer, lr=1e-2),  # type: ignore[arg-type]
    )
    tokens = tiny_tokens(config, time=10)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    loss = float("inf")
    for _ in range(120):
        sums = loss_sums(*model.logit_factors(model.hidden(inputs)), targets)
        mean = sums.nll / targets.numel()
        loss = float(mean.detach())
        if loss < 0.1:
            break
        mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        optim.zero_grad()
    assert loss < 0.1
    assert int(sums.correct) == targets.numel()
