"""A few steps of a tiny model by several processes, and what is compared of them."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from _pytest.mark.structures import ParameterSet
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.tensor import DTensor

from colakit.build import Machine, build_model, build_schedule
from colakit.config.load import resolve
from colakit.config.schema import RunConfig
from colakit.data.loader import TrainLoader
from colakit.data.packing import PAD
from colakit.model.lm import LM
from colakit.optim.combined import CombinedOptimizer
from colakit.parallel.shards import here
from colakit.parallel.world import World
from colakit.train.state import restore_rng
from colakit.train.step import StepResult, TrainStep
from tests.model.tiny import SIZES

CPU = Machine(torch.device("cpu"), torch.float32)
STRATEGIES = ("ddp", "zero1", "fsdp2")
DROPOUTS = ("fan_dropout", "fan_dropout_growth", "post_attention_dropout", "final_dropout", "attention_dropout")
EOT = 0
_BATCH = 12  # divides among 2, 3 and 4


def slow(*values: object) -> ParameterSet:
    """A test's parameters that take their time."""
    return pytest.param(*values, marks=pytest.mark.slow)


def tiny_config(preset: str, *sets: str, dropout: bool = False) -> RunConfig:
    """`preset` with all its choices, at tiny sizes; unless `dropout`, with none."""
    sizes = [f"model.{name}={size}" for name, size in SIZES.items()]
    none = [] if dropout else [f"model.{name}=0.0" for name in DROPOUTS]
    train = [f"train.batch_size={_BATCH}", "train.micro_batch_size=2", "train.max_steps=10", "train.device=cpu"]
    optim = ["optim.lr=0.01", "optim.grad_clip=0.6"]  # which some steps are beyond
    return resolve(preset, sets=[*sizes, *none, *train, *optim, *sets]).config


class Ragged:
    """Blocks of random tokens that end early, no two in a row alike, so that no share of a batch is like another."""

    def __init__(self, config: RunConfig, seed: int, n_blocks: int = 29) -> None:
        random, width = np.random.default_rng(seed), config.model.seq_len + 1
        self._blocks = random.integers(EOT + 1, config.model.vocab_size, size=(n_blocks, width), dtype=np.int32)
        self._blocks[random.random(self._blocks.shape) < 0.2] = EOT
        lengths = random.integers(2, width + 1, size=(n_blocks, 1))
        self._blocks[np.arange(width) >= lengths] = PAD

    @property
    def n_targets(self) -> int:
        return int((self._blocks[:, 1:] != PAD).sum())

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        return self._blocks[index]


def loader_of(config: RunConfig, world: World) -> TrainLoader:
    """Batches of every source of `config`, as far as they are this process's."""
    sources = {name: Ragged(config, seed) for seed, name in enumerate(config.data.mixture)}
    return TrainLoader(
        sources,
        build_schedule(config),
        config.train.batch_size,
        config.train.seed,
        isolate_eot=EOT if config.data.isolates_documents else None,
        global_rank=world.rank,
        world_size=world.size,
    )


def step_of(config: RunConfig, world: World) -> TrainStep:
    """The step of a new model, as every process makes it."""
    step = TrainStep.of(config, build_model(config, CPU), CPU, world)
    step.model.train()
    restore_rng(None, config, world)
    return step


def go(step: TrainStep, config: RunConfig, steps: range) -> list[StepResult]:
    """Make these `steps`."""
    micro = config.train.micro_batch_size_of(step.world.size)
    loader = loader_of(config, step.world)
    return [step(s, loader.micro_batches(s, micro)) for s in steps]


@dataclass(frozen=True)
class Course:
    """What a few steps came to."""

    results: list[StepResult]
    start: dict[str, Tensor]
    end: dict[str, Tensor]


def course(world: World, config: RunConfig, n_steps: int) -> Course:
    """`n_steps` of a new model."""
    step = step_of(config, world)
    start = weights(step.model, world)
    return Course(go(step, config, range(n_steps)), start, weights(step.model, world))


def weights(model: LM, world: World) -> dict[str, Tensor]:
    """Copies of all weights, whole, in every process."""
    own = {name: here(p.detach()).clone() for name, p in model.named_parameters()}
    if not any(isinstance(p, DTensor) for p in model.parameters()):
        return own
    everyone = world.gather(own)
    return {name: torch.cat([theirs[name] for theirs in everyone]) for name in own}


def optimizer_state(optimizer: CombinedOptimizer) -> dict[str, Tensor]:
    """All state of the optimizer, whole, in every process."""
    own = [(e.name, e.piece.start if e.tensor.ndim else 0, e.tensor.clone()) for e in optimizer.entries()]
    rows: dict[str, list[tuple[int, Tensor]]] = {}
    for name, start, tensor in (entry for entries in optimizer.division.world.gather(own) for entry in entries):
        rows.setdefault(name, []).append((start, tensor))
    return {name: _joined(parts) for name, parts in sorted(rows.items())}


def _joined(parts: list[tuple[int, Tensor]]) -> Tensor:
    if parts[0][1].ndim == 0:  # a number that is the same for all
        assert all(torch.equal(tensor, parts[0][1]) for _, tensor in parts)
        return parts[0][1]
    found, end = [], 0
    for start, tensor in sorted(((s, t) for s, t in parts if len(t)), key=lambda part: part[0]):
        assert start == end, "each row once"
        found.append(tensor)
        end += len(tensor)
    return torch.cat(found)
