"""What a checkpoint holds besides weights and optimizer, by file."""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from colakit.build import Machine
from colakit.checkpoint import rng
from colakit.config.schema import RunConfig
from colakit.data.loader import TrainLoader
from colakit.data.prepare import PreparedData
from colakit.errors import CheckpointError
from colakit.parallel.world import World
from colakit.train.step import TrainStep
from colakit.train.totals import Totals

log = logging.getLogger(__name__)


def describe_state(
    config: RunConfig, totals: Totals, *, step: TrainStep, data: PreparedData, loader: TrainLoader, machine: Machine
) -> dict[str, Any]:  # Any: JSON values
    """What the step after those of `totals` depends on, and what decides how its sums are rounded.

    Every process calls this, and gets what the main one writes.
    """
    steps, world = totals.steps, step.world
    first, *others = world.gather(rng.capture())
    shared = {"processes": world.size, "strategy": config.parallel.strategy} if world.size > 1 else {"processes": 1}
    return {
        "step": steps,
        "tokens": totals.tokens,
        "lr": step.lr_at(steps),
        "data": {
            "fingerprint": data.fingerprint,
            "next_block": steps * config.train.batch_size,
            "epochs": loader.epochs(steps),
            "not_replayable": [source.name for source in data.sources if not source.is_replayable],
        },
        "guard": step.guard.state_dict(),
        "rng": first,
        "rng_of_others": others,
        "machine": {
            **shared,
            "device": str(machine),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "compiled": step.model.is_compiled,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),  # the vector instructions its kernels use
        },
    }


def restore_rng(state: dict[str, Any] | None, config: RunConfig, world: World) -> None:  # Any: JSON values
    """Put this process's generators to where `state` has them; those it does not know, and all without one, anew.

    Each process draws its own dropout.
    """
    saved = [] if state is None else [state["rng"], *state.get("rng_of_others", [])]
    if world.rank < len(saved):
        rng.restore(saved[world.rank])
    elif world.rank == 0:
        rng.seed(config.train.seed)
    else:
        rng.seed(config.train.seed, world.rank, 0 if state is None else state["step"])


def warn_of_differences(then: dict[str, Any], now: dict[str, Any]) -> None:  # Any: JSON values
    """Log what makes the rest of a run, stopped in state `then`, another than it would have been."""
    for name, value in now["machine"].items():
        if (before := then["machine"].get(name, value)) != value:
            log.warning("%s: %s before, %s here. The run goes on, but not to the same bits.", name, before, value)
    for name in then["data"]["not_replayable"]:
        log.warning("The source %s is not pinned to a commit: what is read is what was prepared here.", name)


def read_json(path: Path) -> dict[str, Any]:  # Any: JSON values
    """The content of one of those files. Raises CheckpointError."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not what colakit writes.")
    return content
