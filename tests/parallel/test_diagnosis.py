"""A number that is not finite, in one process's part alone: all leave the update out, and name the same place."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, nan

import pytest
import torch
from torch import Tensor, nn

from colakit.config.schema import RunConfig
from colakit.parallel.shards import here
from colakit.parallel.world import World
from colakit.train.diagnosis import first_bad_layer
from colakit.train.step import StepResult, TrainStep
from tests.parallel.pool import Pool
from tests.parallel.runs import STRATEGIES, go, loader_of, step_of, tiny_config, weights

PLACE = "blocks.1.mlp"
WEIGHT = "blocks.2.attention.out.b.0"
Spoil = Callable[[TrainStep, "Where"], None]


@dataclass
class Where:
    """In which step and micro-batch something is spoilt, counted by what runs."""

    wanted: bool = False
    passes: int = 0

    def is_here(self) -> bool:
        """Whether it is in the second of three micro-batches."""
        self.passes += 1
        return self.wanted and self.passes % 3 == 2


def spoil_output(step: TrainStep, where: Where) -> None:
    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output * nan if where.is_here() else output

    step.model.get_submodule(PLACE).register_forward_hook(hook)


def spoil_gradient(step: TrainStep, where: Where) -> None:
    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        if where.is_here():
            output.register_hook(lambda gradient: gradient * nan)

    step.model.get_submodule(PLACE).register_forward_hook(hook)


@dataclass(frozen=True)
class Found:
    results: list[StepResult]
    reason: str
    weights: list[dict[str, Tensor]]
    """Behind each step."""
    has_gradients: bool


def diagnosed(world: World, config: RunConfig, spoil: Spoil, spoiler: int) -> Found:
    """Three steps, of which process `spoiler` spoils the second."""
    step, where = step_of(config, world), Where()
    if world.rank == spoiler:
        spoil(step, where)
    loader, micro = loader_of(config, world), config.train.micro_batch_size_of(world.size)
    results, ends, reason = [], [], ""
    for s in range(3):
        batches = loader.micro_batches(s, micro)
        where.wanted = s == 1
        results.append(step(s, batches))
        if results[-1].skipped is not None:
            reason = first_bad_layer(step, batches)
        ends.append(weights(step.model, world))
    return Found(results, reason, ends, any(p.grad is not None for p in step.model.parameters()))


@pytest.mark.parametrize("preset", ["cola-fan-muon", "cola-m"])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(spoil_output, f"the output of {PLACE}"), (spoil_gradient, f"the gradient of the output of {PLACE}")],
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_one_process_meets_all_name(pool: Pool, strategy: str, spoil: Spoil, reason: str, preset: str) -> None:
    """Though under FSDP2 it has reached everybody's gradients."""
    first, second = pool.run(2, diagnosed, tiny_config(preset, f"parallel.strategy={strategy}"), spoil, 1)
    for found in (first, second):
        assert [result.skipped for result in found.results] == [None, "not finite", None]
        assert [isfinite(result.grad_norm) for result in found.results] == [True, False, True]
        assert not found.has_gradients
        after_1, after_2, after_3 = found.weights
        assert all(torch.equal(tensor, after_1[name]) for name, tensor in after_2.items()), "the update is left out"
        assert not any(torch.equal(tensor, after_2[name]) for name, tensor in after_3.items()), "training goes on"
        assert all(torch.equal(tensor, first.weights[2][name]) for name, tensor in after_3.items())
    assert first.reason == second.reason
    # A gradient is seen where it first arrives: as the module's, or as its last part's.
    assert first.reason.startswith(reason)


def with_a_bad_weight(world: World, config: RunConfig) -> tuple[str | None, str]:
    """Why the update is left out, and what is named, where the last process has a bad number in its rows."""
    step = step_of(config, world)
    go(step, config, range(1))
    if world.rank == world.size - 1:
        here(step.model.get_parameter(WEIGHT).detach())[-1, 0] = nan
    batches = loader_of(config, world).micro_batches(1, config.train.micro_batch_size_of(world.size))
    return step(1, batches).skipped, first_bad_layer(step, batches)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_weight_that_is_not_finite_all_name(pool: Pool, strategy: str) -> None:
    config = tiny_config("cola-fan-muon", f"parallel.strategy={strategy}")
    assert pool.run(2, with_a_bad_weight, config) == [("not finite", f"the weight {WEIGHT}")] * 2
