"""The only assembler: from a `RunConfig` to device, model, optimizer and loader. The user's mistakes: ConfigError."""

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from colakit import products
from colakit.config.schema import ModelConfig, OptimConfig, RunConfig
from colakit.data.loader import TrainLoader
from colakit.data.mixture import Schedule
from colakit.data.prepare import PreparedData
from colakit.errors import ConfigError, Problem
from colakit.model.config import LMConfig
from colakit.model.lm import LM
from colakit.optim.combined import CombinedOptimizer
from colakit.optim.pieces import ByOwner, ByRows
from colakit.parallel.environment import SOLE, Place
from colakit.parallel.world import ALONE, World
from colakit.parallel.wrap import DDPReplica, Owned, OwnerReplica, Replica, ShardedReplica

log = logging.getLogger(__name__)


AttentionName = Literal["flash", "sdpa", "reference"]


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes. Weights stay float32; `dtype` is that of the products."""

    device: torch.device
    dtype: torch.dtype
    attention: AttentionName = "sdpa"
    compiles: bool = False
    """Whether training compiles the blocks, or tries to."""

    def autocast(self) -> AbstractContextManager[object]:
        """The context a forward pass runs in."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return f"{name}, {str(self.dtype).removeprefix('torch.')}"


def pick_machine(config: RunConfig, place: Place = SOLE) -> Machine:
    """The device, dtype and attention backend of a run; an ``auto`` backend logs the choice.

    Each process of a machine gets a GPU of its own. Raises ConfigError where CUDA is asked for and absent, where there
    are fewer GPUs than processes, and for ``flash`` where it cannot run.
    """
    wanted = config.train.device
    if wanted == "cuda" and not torch.cuda.is_available():
        rule = "torch sees no CUDA device"
        raise ConfigError([Problem("train.device", "cuda", rule, "Use auto or cpu, or install a CUDA build of torch.")])
    device = torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and place.world_size > 1:
        device = _own_gpu(place)
    native_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if config.train.dtype == "auto":
        dtype = torch.bfloat16 if native_bf16 else torch.float32
    else:
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.train.dtype]
    attention = _pick_attention(config.model.attention, device, dtype)
    return Machine(device, dtype, attention, compiles=will_compile(config, device))


def _own_gpu(place: Place) -> torch.device:
    n_gpus = torch.cuda.device_count()
    if place.local_world_size > n_gpus:
        rule = f"there {'is 1 GPU' if n_gpus == 1 else f'are {n_gpus} GPUs'} on this machine, and each has one process"
        fix = "Start fewer processes, or --set train.device=cpu."
        raise ConfigError([Problem("--nproc", place.local_world_size, rule, fix)])
    device = torch.device("cuda", place.local_rank)
    torch.cuda.set_device(device)
    return device


def on_machine(config: RunConfig, machine: Machine) -> RunConfig:
    """`config` with the device and type that ``auto`` comes to there, for what is counted in closed form."""
    found = {"device": machine.device.type, "dtype": str(machine.dtype).removeprefix("torch.")}
    return config.model_copy(update={"train": config.train.model_copy(update=found)})


def _pick_attention(choice: AttentionName | Literal["auto"], device: torch.device, dtype: torch.dtype) -> AttentionName:
    installed = importlib.util.find_spec("flash_attn") is not None
    usable = installed and device.type == "cuda" and dtype == torch.bfloat16
    if choice == "flash" and not usable:
        rule = (
            f"flash-attn needs CUDA and bfloat16, not {device} and {dtype}"
            if installed
            else "flash-attn is not installed"
        )
        fix = "Use --set model.attention=auto, or `pip install 'colakit[flash]'` on a machine with CUDA."
        raise ConfigError([Problem("model.attention", "flash", rule, fix)])
    if choice != "auto":
        return choice
    picked: AttentionName = "flash" if usable else "sdpa"
    log.info("model.attention is auto: using %s", picked)
    return picked


def will_compile(config: RunConfig, device: torch.device) -> bool:
    """What train.compile comes to on `device`."""
    if config.train.compile == "auto":
        return device.type == "cuda" and config.can_compile
    return config.train.compile


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, torch takes kernels that give the same bits each time, if `wanted`, and refuses those it has no such for.

    A CPU's give them anyway.
    """
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS at its first use
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def lm_config(config: ModelConfig, attention: AttentionName) -> LMConfig:
    """The model package's own configuration: the same fields, with nothing left open."""
    values = config.model_dump()
    return LMConfig(**(values | {"attention": attention, "qkv_norm": config.effective_qkv_norm}))


def build_model(config: RunConfig, machine: Machine) -> LM:
    """The initialised model on its device, a function of the configuration and its seed."""
    if machine.device.type == "cpu":
        products.use_fastest()
    model = LM(lm_config(config.model, machine.attention))
    model.init_weights(config.train.seed)
    return model.to(machine.device)


def build_schedule(config: RunConfig) -> Schedule:
    """Which source each block of the run comes from."""
    data = config.data
    weights = [stage.weights for stage in data.mixture_stages]
    return Schedule(list(data.mixture), weights, config.stage_ends, config.train.seed)


def build_loader(config: RunConfig, data: PreparedData, world: World = ALONE) -> TrainLoader:
    """The training batches of every step, as far as they are this process's."""
    return TrainLoader(
        data.train,
        build_schedule(config),
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        isolate_eot=data.isolate_eot,
        global_rank=world.rank,
        world_size=world.size,
    )


def build_replica(model: LM, config: RunConfig, machine: Machine, world: World = ALONE) -> Replica:
    """The model as it trains, by ``parallel.strategy`` where there are several processes."""
    if world.size == 1:
        return Replica(model)
    match config.parallel.strategy:
        case "ddp":
            return DDPReplica(model, world)
        case "zero1":
            return OwnerReplica(model, world)
        case "fsdp2":
            return ShardedReplica(model, world, machine.device)


def build_optimizer(
    model: LM, config: OptimConfig, replica: Replica | None = None, world: World = ALONE
) -> CombinedOptimizer:
    """Muon and AdamW over the model's parameters, by role; of several processes each updates its part."""
    roles = model.param_roles()
    if isinstance(replica, ShardedReplica):
        return CombinedOptimizer(model, roles, config, partial(ByRows, world=world))
    if not isinstance(replica, OwnerReplica):
        return CombinedOptimizer(model, roles, config)
    optimizer = CombinedOptimizer(model, roles, config, partial(ByOwner, roles=roles, config=config, world=world))
    assert isinstance(optimizer.division, ByOwner)
    for owner, pieces in enumerate(optimizer.division.everyone):
        replica.own(Owned(p.parameter, p.start, p.start + len(p.tensor), owner) for p in pieces)
    return optimizer
