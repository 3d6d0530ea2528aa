"""The strategies over NCCL: one process, which exchanges with itself, so that one GPU shows that it all runs there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from colakit.bench.random_data import random_batches
from colakit.build import build_model, build_optimizer, pick_machine
from colakit.checkpoint.model_file import load_model, load_optimizer
from colakit.checkpoint.sharded import model_parts, optimizer_parts, save_parts
from colakit.config.load import resolve
from colakit.config.schema import RunConfig
from colakit.model.lm import LM
from colakit.optim.pieces import here
from colakit.parallel.environment import SOLE
from colakit.parallel.traffic import Traffic
from colakit.parallel.world import World, group_of, join
from colakit.parallel.wrap import DDPReplica, OwnerReplica, Replica, ShardedReplica
from colakit.train.step import TrainStep

pytestmark = pytest.mark.gpu

STRATEGIES = ["ddp", "zero1", "fsdp2"]
PRESETS = ["original", "cola-fan-muon", "refined-tied", "cola-m"]
NO_DROPOUT = [f"model.{name}=0.0" for name in ("fan_dropout", "post_attention_dropout", "final_dropout")]
SIZES = [
    "train.batch_size=8",
    "train.micro_batch_size=4",
    "train.max_steps=10",
    "optim.lr=1e-3",
    "train.dtype=bfloat16",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    join(SOLE, f"file://{tmp_path_factory.mktemp('nccl')}/meeting")
    yield group_of([0], timeout_s=60)
    dist.destroy_process_group()


def config_of(preset: str, *sets: str) -> RunConfig:
    smoke = [s for s in NO_DROPOUT if preset != "original" or "fan" not in s]
    return resolve(preset, smoke_run=True, sets=[*SIZES, *smoke, "model.fan_dropout_growth=0.0", *sets]).config


def step_of(config: RunConfig, world: World, strategy: str | None) -> TrainStep:
    """Of a run by `strategy`, or where it is None of a process alone."""
    machine = pick_machine(config)
    model = build_model(config, machine).train()
    step = TrainStep.of(config, model, machine)
    if strategy is None:
        return step
    if config.train.compile is not True:
        model.run_eagerly()
    step.replica = replica_of(model, world, strategy, machine.device)
    step.optimizer = build_optimizer(model, config.optim, step.replica, world)
    step.world = world
    return step


def replica_of(model: LM, world: World, strategy: str, device: torch.device) -> Replica:
    match strategy:
        case "ddp":
            return DDPReplica(model, world)
        case "zero1":
            return OwnerReplica(model, world)
        case _:
            return ShardedReplica(model, world, device)


def trained(step: TrainStep, config: RunConfig, n_steps: int) -> tuple[list[float], dict[str, Tensor]]:
    batches = random_batches(config)
    losses = [step(i, next(batches)).loss for i in range(n_steps)]
    batches.close()
    return losses, {name: here(p.detach()).clone() for name, p in step.model.named_parameters()}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("preset", PRESETS)
def test_it_trains_as_a_process_alone(world: World, preset: str, strategy: str) -> None:
    """By the same kernels on the same numbers; atomics in the embedding's gradient add up in any order."""
    config = config_of(preset)
    losses, weights = trained(step_of(config, world, None), config, 5)
    shared_losses, shared_weights = trained(step_of(config, world, strategy), config, 5)
    assert shared_losses == pytest.approx(losses, rel=1e-3)
    for name, weight in weights.items():
        torch.testing.assert_close(shared_weights[name], weight, rtol=0.0, atol=4e-3)  # of updates of some 1e-3 each
    moved = max(float((w - shared_weights[n]).abs().mean() / w.abs().mean()) for n, w in weights.items() if w.ndim == 2)
    assert moved < 0.01


@pytest.mark.filterwarnings("ignore")  # of torch's own, by which a compilation would fail
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_compiled_it_trains_too(world: World, strategy: str) -> None:
    config = config_of("cola-fan-muon")
    compiled = config_of("cola-fan-muon", "train.compile=true")
    losses, _ = trained(step_of(config, world, strategy), config, 4)
    step = step_of(compiled, world, strategy)
    assert trained(step, compiled, 4)[0] == pytest.approx(losses, rel=5e-3)
    assert step.model.is_compiled


@pytest.mark.parametrize("strategy", ["ddp", "zero1"])  # to itself FSDP2 sends nothing
def test_traffic_is_seen_from_autograds_own_threads(world: World, strategy: str) -> None:
    """Counted as if there were two: NCCL is asked in the backward pass, which has threads of its own on CUDA."""
    config = config_of("cola-fan-muon")
    step = step_of(config, world, strategy)
    trained(step, config, 1)
    size = sum(p.numel() * p.element_size() for p in step.model.parameters())
    with Traffic(0, 2) as traffic:
        trained(step, config, 1)
    kinds = {"ddp": {"all-reduce": 1.0}, "zero1": {"reduce": 0.5, "broadcast": 0.5}}[strategy]
    for kind, times in kinds.items():
        assert traffic.sent[kind] == pytest.approx(times * size, rel=0.01)


@pytest.mark.parametrize("strategy", ["zero1", "fsdp2"])
def test_a_checkpoint_is_read_back(world: World, strategy: str, tmp_path: Path) -> None:
    config = config_of("cola-fan-muon")
    step = step_of(config, world, strategy)
    _, weights = trained(step, config, 2)
    save_parts(model_parts(step.model, world), tmp_path / "model", world)
    save_parts(optimizer_parts(step.optimizer), tmp_path / "optimizer", world)
    other = step_of(config_of("cola-fan-muon", "train.seed=5"), world, strategy)
    load_model(other.model, tmp_path, world)
    load_optimizer(other.optimizer, tmp_path)
    for name, p in other.model.named_parameters():
        assert torch.equal(here(p.detach()), weights[name]), name
    expected = {name: tensor for name, _, tensor in step.optimizer.entries()}
    found = {name: tensor for name, _, tensor in other.optimizer.entries()}
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
