"""Open a model, whatever wrote its folder: a run, a checkpoint, an export, or another model of `transformers`.

What is wrong with the folder's name is told before torch is imported, and `transformers` only where its folder it is.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from colakit.errors import CheckpointError
from colakit.train.runs import CONFIG_FILE

if TYPE_CHECKING:
    from colakit.evaluate.foreign import ForeignModel
    from colakit.train.saved import SavedModel

_GIVE = "Give the folder of a run, a checkpoint or an exported model."
OWN = "colakit"
"""What `transformers` calls colakit's models."""


def open_model(path: Path) -> "SavedModel | ForeignModel":
    """The model of `path`. Raises CheckpointError where there is none that can be read."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder. {_GIVE}")
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file. {_GIVE}")
    model_type = _model_type(path)
    if model_type is None:
        from colakit.train.saved import open_saved

        return open_saved(path)
    from colakit.hf.importing import open_export, open_foreign

    return open_export(path) if model_type == OWN else open_foreign(path, model_type)


def open_own(path: Path, what: str) -> "SavedModel":
    """The model of `path`, which has to be colakit's; `what` ends the CheckpointError where it is not."""
    opened = open_model(path)
    from colakit.train.saved import SavedModel

    if not isinstance(opened, SavedModel):
        raise CheckpointError(f"{path} is a model of `transformers` that is none of colakit's. {what}")
    return opened


def _model_type(path: Path) -> str | None:
    """What `transformers` calls the model in a folder; None where it is none of its folders."""
    try:
        config = json.loads((path / CONFIG_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    found = config.get("model_type") if isinstance(config, dict) else None
    return found if isinstance(found, str) else None
