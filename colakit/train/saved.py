"""Open a finished run again: its configuration, its data, its model."""

from collections.abc import Sequence
from pathlib import Path

from colakit.build import build_model, pick_machine
from colakit.checkpoint.folders import Checkpoints, step_of, verify
from colakit.checkpoint.model_file import load_model
from colakit.config.schema import RunConfig
from colakit.data.prepare import prepare
from colakit.errors import CheckpointError
from colakit.records.run import EvalRecord
from colakit.train.held_out import HeldOut
from colakit.train.moved import check_same_data, check_where_it_lies, with_moved_data
from colakit.train.runs import RunFolder
from colakit.train.state import STATE_FILE, read_json


def evaluate_run(root: Path, sets: Sequence[str] = ()) -> EvalRecord:
    """Held-out metrics of a run's model, over the same tokens as its evaluations: of its newest checkpoint.

    `sets` are ``--set`` strings that say where its data lies by now. The run's own tokenizer is used, and the machine
    is chosen afresh: what a GPU trained is evaluated without one. Raises CheckpointError where `root` holds no trained
    model, DataError where its data is no longer what it was, ConfigError for `sets` that say anything else.
    """
    folder = RunFolder(root)
    config = _for_this_machine(folder, with_moved_data(folder.load_config(), sets))
    newest = Checkpoints(folder.checkpoints).newest()
    if newest is None:
        raise CheckpointError(f"{root} has no checkpoint: nothing was trained yet.")
    verify(newest)
    steps = step_of(newest) or 0
    fingerprint = read_json(newest / STATE_FILE)["data"]["fingerprint"]
    machine = pick_machine(config)
    model = build_model(config, machine)
    load_model(model, newest)
    check_where_it_lies(config)
    data = prepare(config.data, seq_len=config.model.seq_len, vocab_size=config.model.vocab_size)
    check_same_data(folder, fingerprint, data)
    return HeldOut(model, data, machine, config.train).evaluate(steps)


def _for_this_machine(folder: RunFolder, config: RunConfig) -> RunConfig:
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"attention": "auto"}),
            "data": config.data.model_copy(update={"tokenizer": str(folder.tokenizer)}),
            "train": config.train.model_copy(update={"device": "auto", "dtype": "auto"}),
        }
    )
