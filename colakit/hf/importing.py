"""Folders of `transformers` read back: colakit's own exports, and other models to compare with."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from colakit.build import pick_machine
from colakit.config.load import from_saved
from colakit.config.schema import ModelConfig, RunConfig
from colakit.data.tokenizer import read_tokenizer
from colakit.errors import CheckpointError, ColakitError
from colakit.evaluate.foreign import ForeignModel
from colakit.hf import ColakitConfig, ColakitForCausalLM
from colakit.hf.modeling_colakit import WEIGHTS_FILE
from colakit.hf.quiet import without_a_bar
from colakit.train.runs import ORIGIN_FILE, RunFolder
from colakit.train.saved import Origin, SavedModel, check_vocabulary, for_this_machine

_MOST_TOLD = 300


def open_export(path: Path) -> SavedModel:
    """A folder that `colakit export` wrote, or `save_pretrained` of a `ColakitForCausalLM`. Raises CheckpointError."""
    origin = _read_origin(path)
    if not (path / WEIGHTS_FILE).is_file() and not (path / f"{WEIGHTS_FILE}.index.json").is_file():
        raise CheckpointError(f"{path} has no {WEIGHTS_FILE}. Copy it again, or export the model again.")
    try:
        found = ColakitConfig.from_pretrained(path)
        config = _run_config(found, origin)  # which refuses what no model can be built from
        exported = ColakitForCausalLM.from_pretrained(path, config=found)
        machine = pick_machine(config)
        model = exported.model.float().to(machine.device)
    except (OSError, ValueError, SafetensorError, ColakitError) as error:
        raise CheckpointError(f"{path} is no whole model ({_told(error)}). Export it again.") from error
    tokenizer = read_tokenizer(path, source=str(path))
    check_vocabulary(path, tokenizer, config.model.vocab_size)
    if origin.get("tokenizer_fingerprint") not in (None, tokenizer.text_fingerprint):
        raise CheckpointError(f"{path} holds another tokenizer than its model was trained with. Export it again.")
    seen, steps = origin.get("data_fingerprint"), origin.get("steps")
    return SavedModel(
        path,
        config,
        machine,
        model,
        tokenizer,
        path,
        steps if isinstance(steps, int) else None,
        Origin(path, seen, RunFolder(path).data) if seen is not None and "run" in origin else None,
    )


def _run_config(exported: ColakitConfig, origin: dict[str, Any]) -> RunConfig:  # Any: JSON values
    """The run's, of the model that is in the folder, which may have been trained on since."""
    run = from_saved(origin["run"]) if "run" in origin else RunConfig()
    own = {name: getattr(exported, name) for name in ModelConfig.model_fields}
    return for_this_machine(from_saved({**run.model_dump(), "model": own}))


def _read_origin(path: Path) -> dict[str, Any]:  # Any: JSON values
    with suppress(OSError):
        try:
            found = json.loads((path / ORIGIN_FILE).read_text("utf-8"))
            if isinstance(found, dict):
                return found
        except ValueError:
            pass
        raise CheckpointError(f"{path / ORIGIN_FILE} is damaged. Remove it, or export the model again.")
    return {}


def open_foreign(path: Path, model_type: str) -> ForeignModel:
    from transformers import AutoModelForCausalLM

    tokenizer = read_tokenizer(path, source=str(path))
    # Its attention is its own.
    machine = pick_machine(RunConfig(model=ModelConfig(attention="sdpa")))
    try:
        with without_a_bar():
            model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    except Exception as error:  # transformers raises what its parts raise
        raise CheckpointError(f"{path}: no {model_type} model could be read from it ({_told(error)}).") from error
    found = ForeignModel(path, model.to(machine.device), tokenizer, machine)
    check_vocabulary(path, tokenizer, found.vocab_size)
    return found


def _told(error: Exception) -> str:
    """What an error says, on one line and not without end."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rstrip(".") if len(text) <= _MOST_TOLD else f"{text[:_MOST_TOLD]} …"
