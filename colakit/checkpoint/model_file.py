"""A model's weights on disk: ``model.safetensors`` under the public parameter names."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from colakit.errors import CheckpointError
from colakit.model.lm import LM

MODEL_FILE = "model.safetensors"


def save_model(model: LM, folder: Path) -> Path:
    """Write `model`'s weights into `folder`; the file appears whole or not at all. Raises CheckpointError."""
    path = folder / MODEL_FILE
    partial = path.with_suffix(".partial")
    # Cloned, since published names are views that share storage, which safetensors refuses.
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    try:
        partial.touch()
        mode = partial.stat().st_mode  # safetensors makes its files readable for their owner alone
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.chmod(mode)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: the weights cannot be written ({error}). Free some space there.") from error
    return path


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
