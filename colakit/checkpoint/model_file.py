"""Tensors on disk: ``model.safetensors`` under the public parameter names, and ``optimizer.safetensors``."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from colakit.checkpoint.folders import MODEL_FILE as MODEL_FILE
from colakit.checkpoint.folders import MODEL_FOLDER, OPTIMIZER_FOLDER
from colakit.errors import CheckpointError
from colakit.model.lm import LM
from colakit.optim.combined import CombinedOptimizer
from colakit.parallel.shards import is_sharded
from colakit.parallel.world import ALONE, World

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
    """Fill `optimizer`, as far as its state is here, from the checkpoint `folder`, however many processes wrote it.

    Raises CheckpointError where a file is missing, broken or does not fit.
    """
    path = folder / OPTIMIZER_FILE
    if (divided := folder / OPTIMIZER_FOLDER).is_dir():
        from colakit.checkpoint.sharded import load_parts, optimizer_parts

        optimizer.reset(with_state=any(divided.iterdir()))
        load_parts(optimizer_parts(optimizer), divided)
        return
    try:
        optimizer.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}).") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: does not fit the configuration beside it. {error}") from error


def load_model(model: LM, folder: Path, world: World = ALONE) -> None:
    """Fill `model`, as far as it is here, from a checkpoint or run `folder`.

    Raises CheckpointError where a file is missing, broken or of another shape.
    """
    path = folder / MODEL_FILE
    if (divided := folder / MODEL_FOLDER).is_dir():
        from colakit.checkpoint.sharded import load_parts, model_parts

        load_parts(model_parts(model, world), divided)
        return
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. The run has not finished, or this is not a run folder.")
    try:
        if any(is_sharded(p) for p in model.parameters()):
            _fill(model, load_file(path), world)
        else:
            model.load_state_dict(load_file(path))
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}). It was cut short or changed."
        ) from None
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit the configuration beside it. {error}") from None


def copy_model(folder: Path, to: Path) -> None:
    """Write the weights of the checkpoint `folder` to the file `to`, whole, by their public names. Raises OSError."""
    if (divided := folder / MODEL_FOLDER).is_dir():
        from colakit.checkpoint.sharded import read_whole

        save_tensors(read_whole(divided), to)
    else:
        shutil.copy(folder / MODEL_FILE, to)


def _fill(model: LM, tensors: Mapping[str, Tensor], world: World) -> None:
    """A model of which some rows are here. Raises RuntimeError, as torch does, where it is another model."""
    from colakit.checkpoint.sharded import model_parts

    for name, part in model_parts(model, world).items():
        if name not in tensors or tensors[name].shape != part.shape:
            raise RuntimeError(f"{name}, of shape {list(part.shape)}, is not there.")
        part.tensor.copy_(tensors[name][part.start : part.start + len(part.tensor)])
