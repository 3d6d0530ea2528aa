"""Open a model, whatever wrote its folder: a run, a checkpoint, an export, or another model of `transformers`."""

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from colakit.build import Machine, pick_machine
from colakit.config.load import from_saved
from colakit.config.schema import ModelConfig, RunConfig
from colakit.data.loader import Batch
from colakit.data.tokenizer import Tokenizer, read_tokenizer
from colakit.errors import CheckpointError, ColakitError
from colakit.evaluate.evaluation import Subject
from colakit.evaluate.mode import evaluation_mode
from colakit.hf import ColakitConfig, ColakitForCausalLM
from colakit.loss import TokenScores, scores_of_logits_
from colakit.train.runs import CONFIG_FILE, ORIGIN_FILE, RunFolder
from colakit.train.saved import Origin, SavedModel, check_vocabulary, for_this_machine, is_the_same, open_saved
from colakit.units import GIB

log = logging.getLogger(__name__)

_MOST_TOKENS = 2048
"""Of a window, unless told otherwise: some models read 100,000, whose whole logits no memory holds."""


class ForeignModel:
    """A causal language model of `transformers` that is none of colakit's: it can be scored, to compare with."""

    def __init__(self, place: Path, model: Any, tokenizer: Tokenizer, machine: Machine) -> None:
        # Any: whatever AutoModelForCausalLM gives
        self.place = place
        self.model = model
        self.tokenizer = tokenizer
        self.tokenizer_folder = place
        self.machine = machine
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self.context = _context(model.config.get_text_config(), place)
        self.seq_len = min(self.context, _MOST_TOKENS)

    def subject(self) -> Subject:
        """What is evaluated."""
        return Subject(str(self.place), None, None, self.machine, self)

    def fitting_batch(self, seq_len: int) -> int:
        """Windows to try first: so many that whole logits, the largest of what stands, are 1 GiB in float32."""
        return max(1, GIB // (4 * seq_len * self.vocab_size))

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TokenScores:
        """As `Scorer`. Whole logits stand in memory; documents of a block see each other."""
        device = self.machine.device
        with evaluation_mode(self.model), self.machine.autocast():
            logits = self.model(input_ids=batch.tokens.to(device), use_cache=False).logits
        logits = logits.float().flatten(0, 1)
        return scores_of_logits_(logits, batch.targets.to(device).flatten(), torch.empty_like(logits))


def open_model(path: Path) -> SavedModel | ForeignModel:
    """The model of `path`. Raises CheckpointError where there is none that can be read."""
    model_type = _model_type(path)
    if model_type is None:
        return open_saved(path)
    return open_export(path) if model_type == ColakitConfig.model_type else _open_foreign(path, model_type)


def open_own(path: Path, what: str) -> SavedModel:
    """The model of `path`, which has to be colakit's for `what`. Raises CheckpointError."""
    opened = open_model(path)
    if isinstance(opened, ForeignModel):
        raise CheckpointError(f"{path} is a model of `transformers` that is none of colakit's. {what}")
    return opened


def open_export(path: Path) -> SavedModel:
    """A folder that `colakit export` wrote, or `save_pretrained` of a `ColakitForCausalLM`. Raises CheckpointError."""
    origin = _read_origin(path)
    try:
        found = ColakitConfig.from_pretrained(path)
        config = _run_config(found, origin)  # which refuses what no model can be built from
        exported = ColakitForCausalLM.from_pretrained(path, config=found)
        machine = pick_machine(config)
        model = exported.model.float().to(machine.device)
    except (OSError, ValueError, SafetensorError, ColakitError) as error:
        raise CheckpointError(f"{path} is no whole model ({_first_line(error)}). Export it again.") from error
    tokenizer = read_tokenizer(path, source=str(path))
    check_vocabulary(path, tokenizer, config.model.vocab_size)
    if not is_the_same(tokenizer, RunFolder(path).data):  # transformers, too, writes a tokenizer in its own way
        log.warning("%s: its tokenizer is not, or not as it was, the one that the model was trained with.", path)
    seen = origin.get("data_fingerprint")
    return SavedModel(
        path,
        config,
        machine,
        model,
        tokenizer,
        path,
        origin.get("steps"),
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


def _model_type(path: Path) -> str | None:
    """What `transformers` calls the model in a folder; None where it is none of its folders."""
    try:
        config = json.loads((path / CONFIG_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    found = config.get("model_type") if isinstance(config, dict) else None
    return found if isinstance(found, str) else None


def _open_foreign(path: Path, model_type: str) -> ForeignModel:
    from transformers import AutoModelForCausalLM

    tokenizer = read_tokenizer(path, source=str(path))
    machine = pick_machine(for_this_machine(RunConfig()))
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    except Exception as error:  # transformers raises what its parts raise
        raise CheckpointError(f"{path}: no {model_type} model could be read from it ({_first_line(error)}).") from error
    found = ForeignModel(path, model.to(machine.device), tokenizer, machine)
    check_vocabulary(path, tokenizer, found.vocab_size)
    return found


def _context(config: Any, place: Path) -> int:  # Any: a configuration of transformers
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        if isinstance(length := getattr(config, name, None), int):
            return length
    raise CheckpointError(f"{place}: its config.json does not say how long a text it reads (max_position_embeddings).")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
