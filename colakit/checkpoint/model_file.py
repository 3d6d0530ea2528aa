"""Tensors on disk: ``model.safetensors`` under the public parameter names, and ``optimizer.safetensors``."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from colakit.checkpoint.folders import MODEL_FILE as MODEL_FILE
from colakit.errors import CheckpointError
from colakit.model.lm import LM
from colakit.optim.combined import CombinedOptimizer

OPTIMIZER_FILE = "optimizer.safetensors"


def model_tensors(model: LM) -> dict[str, Tensor]:
    """The weights under their public names, on the CPU and apart from the model's own: what is written may wait."""
    # Copied, since published names are views that share storage, which safetensors refuses.
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


def optimizer_tensors(optimizer: CombinedOptimizer) -> dict[str, Tensor]:
    """The optimizer's state, on the CPU; there, the state itself: it must be written before the next step."""
    return {name: tensor.detach().cpu() for name, tensor in optimizer.state_dict().items()}


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write `tensors` to `path`. Raises OSError, as where the disk is full."""
    try:
        path.touch()
        mode = path.stat().st_mode  # safetensors makes its files readable for their owner alone
        save_file(dict(tensors), path, metadata={"format": "pt"})
        path.chmod(mode)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def load_optimizer(optimizer: CombinedOptimizer, folder: Path) -> None:
    """Fill `optimizer` from `folder`. Raises CheckpointError where the file is missing, broken or does not fit."""
    path = folder / OPTIMIZER_FILE
    try:
        optimizer.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}).") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: does not fit the configuration beside it. {error}") from error


def load_model(model: LM, folder: Path) -> None:
    """Fill `model` from `folder`. Raises CheckpointError where the file is missing, broken or of another shape."""
    path = folder / MODEL_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. The run has not finished, or this is not a run folder.")
    try:
        model.load_state_dict(load_file(path))
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}). It was cut short or changed."
        ) from None
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit the configuration beside it. {error}") from None
