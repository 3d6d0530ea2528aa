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
from colakit.train.step import TrainStep
from colakit.train.totals import Totals

log = logging.getLogger(__name__)


def describe_state(
    config: RunConfig, totals: Totals, *, step: TrainStep, data: PreparedData, loader: TrainLoader, machine: Machine
) -> dict[str, Any]:  # Any: JSON values
    """What the step after those of `totals` depends on, and what decides how its sums are rounded."""
    steps = totals.steps
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
        "rng": rng.capture(),
        "machine": {
            "device": str(machine),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "compiled": step.model.is_compiled,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),  # the vector instructions its kernels use
        },
    }


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
