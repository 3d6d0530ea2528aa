"""Open a trained model again: a run's newest checkpoint, or any checkpoint, with its tokenizer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from colakit.build import Machine, build_model, pick_machine
from colakit.checkpoint.folders import Checkpoints, step_of
from colakit.checkpoint.model_file import load_model
from colakit.config.load import override
from colakit.config.schema import DataConfig, RunConfig
from colakit.data.prepare import PreparedData, prepare
from colakit.data.tokenise import Watch, unwatched
from colakit.data.tokenizer import Tokenizer, read_tokenizer
from colakit.errors import CheckpointError, ConfigError, Problem
from colakit.evaluate.evaluation import Subject, fitting_batch
from colakit.evaluate.scores import LMScorer
from colakit.model.lm import LM
from colakit.train.moved import check_same_data, check_where_it_lies, with_moved_data
from colakit.train.resume import check_whole
from colakit.train.runs import STATE_FILE, RunFolder
from colakit.train.state import read_json


@dataclass(frozen=True)
class Origin:
    """The data a model was trained on."""

    place: Path
    """Whose data it is, for messages."""
    fingerprint: str
    counts: Path
    """The file that describes it."""


@dataclass(frozen=True)
class SavedModel:
    """A trained model on this machine."""

    place: Path
    """The folder that was given."""
    config: RunConfig
    """As it was trained, but for this machine: its device, its precision, its attention."""
    machine: Machine
    model: LM
    tokenizer: Tokenizer
    tokenizer_folder: Path
    steps: int | None
    """Optimizer steps it has made; None where its folder does not say."""
    origin: Origin | None
    """None where its folder does not say."""

    @property
    def seq_len(self) -> int:
        """Tokens of a window."""
        return self.config.model.seq_len

    @property
    def vocab_size(self) -> int:
        """Rows of its embedding."""
        return self.config.model.vocab_size

    @property
    def context(self) -> int:
        """Tokens that it can see."""
        return self.seq_len

    def stride(self, _seq_len: int) -> int | None:
        """How far windows move on unless told: None, since packed is how it was trained."""
        return None

    def subject(self) -> Subject:
        """What is evaluated."""
        scorer = LMScorer(self.model, self.machine)
        tokenizer = self.tokenizer.source
        return Subject(str(self.place), self.config.preset, self.steps, tokenizer, self.machine, scorer)

    def fitting_batch(self, seq_len: int) -> int:
        """Windows of `seq_len` tokens that fit at once."""
        return fitting_batch(self.config.model, self.machine, seq_len)


def open_saved(path: Path) -> SavedModel:
    """The model of a run folder, its newest checkpoint's, or of one of its checkpoints.

    The run's own tokenizer is used, and the machine is chosen afresh: what a GPU trained is opened without one. Raises
    CheckpointError where there is none, or a file of it is not what was written.
    """
    folder, checkpoint = _find(path)
    if checkpoint != folder.root:
        check_whole(checkpoint)
    config = for_this_machine(folder.load_config())
    if not folder.tokenizer.is_dir():
        raise CheckpointError(f"{folder.tokenizer}, the run's tokenizer, is missing. Copy it back.")
    tokenizer = read_tokenizer(folder.tokenizer, source=config.data.tokenizer)
    check_vocabulary(path, tokenizer, config.model.vocab_size)
    if not is_the_same(tokenizer, folder.data):
        raise CheckpointError(
            f"{folder.tokenizer} holds another tokenizer than {path} was trained with. Put that one back."
        )
    steps, fingerprint = _come_to(folder, checkpoint)
    machine = pick_machine(config)
    model = build_model(config, machine)
    load_model(model, checkpoint)
    model.eval()
    origin = Origin(folder.root, fingerprint, folder.data)
    return SavedModel(path, config, machine, model, tokenizer, folder.tokenizer, steps, origin)


def held_out_of(saved: SavedModel, sets: Sequence[str] = (), watch: Watch = unwatched) -> PreparedData:
    """The data that `saved` was trained on, with its held-out side. `sets` are ``--set`` strings: where it lies by now.

    Raises DataError where it is no longer what it was, CheckpointError where nobody knows what it was, ConfigError for
    `sets` that say more than where it lies.
    """
    if saved.origin is None:
        raise CheckpointError(
            f"{saved.place} does not say what it was trained on. Give a text, or a run: --data PATH|RUN."
        )
    config = with_moved_data(saved.config, sets)
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"tokenizer": str(saved.tokenizer_folder)})}
    )
    check_where_it_lies(config)
    data = prepare(config.data, seq_len=config.model.seq_len, vocab_size=config.model.vocab_size, watch=watch)
    check_same_data(saved.origin.place, saved.origin.counts, saved.origin.fingerprint, data)
    return data


def config_of_run(path: str) -> RunConfig | None:
    """The configuration of the run in folder `path`; None where it is no run."""
    folder = RunFolder(Path(path))
    return folder.load_config() if folder.checkpoints.is_dir() else None


def held_out_for(
    config: RunConfig, tokenizer_folder: Path, *, seq_len: int, vocab_size: int, watch: Watch = unwatched
) -> PreparedData:
    """The data of another model's run, with its held-out side, as a tokenizer of one's own reads it.

    What is held out are the same documents: that depends on nothing but their text. Raises DataError.
    """
    check_where_it_lies(config)
    data = config.data.model_copy(update={"tokenizer": str(tokenizer_folder)})
    return prepare(data, seq_len=seq_len, vocab_size=vocab_size, watch=watch)


def text_at(path: str, like: DataConfig, sets: Sequence[str]) -> DataConfig:
    """The files at `path`, all of them, read and packed as `like` says, but for ``--set`` strings over it.

    Raises ConfigError for `sets` that are not of ``data``.
    """
    place = {"source": "files", "path": str(Path(path).expanduser().absolute())}
    whole = like.model_copy(update={"sources": {}, "stages": (), "part": None, "max_mb": None, **place})
    if others := [item for item in sets if not item.strip().startswith("data.")]:
        raise ConfigError([Problem("--set", others[0], "a text is read as data.… says", "Leave it out.")])
    return override(RunConfig(data=whole), sets).data if sets else whole


def for_this_machine(config: RunConfig) -> RunConfig:
    """`config` with its machine left open."""
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"attention": "auto"}),
            "train": config.train.model_copy(update={"device": "auto", "dtype": "auto"}),
        }
    )


def check_vocabulary(place: Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise CheckpointError where the tokenizer beside a model has tokens that the model does not know."""
    if tokenizer.n_tokens > vocab_size:
        raise CheckpointError(
            f"{place}: its tokenizer has {tokenizer.n_tokens} tokens, and its model {vocab_size} rows for them. Put "
            "back the tokenizer that it was trained with."
        )


def _come_to(folder: RunFolder, checkpoint: Path) -> tuple[int | None, str]:
    """The steps that a model has made, and the fingerprint of the data it saw."""
    if checkpoint != folder.root:
        return step_of(checkpoint), str(read_json(checkpoint / STATE_FILE)["data"]["fingerprint"])
    steps = read_json(folder.summary).get("steps") if folder.summary.is_file() else None
    return steps, str(read_json(folder.data).get("fingerprint"))


def is_the_same(tokenizer: Tokenizer, described: Path) -> bool:
    """Whether `tokenizer` is the one that file `described` tells of, as far as it does."""
    try:
        then = json.loads(described.read_text("utf-8"))["tokenizer_fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return True
    return bool(then == tokenizer.fingerprint)


def _find(path: Path) -> tuple[RunFolder, Path]:
    """The run of `path`, and the folder whose weights are meant: a checkpoint, or the run itself."""
    resolved = path.resolve()
    if resolved.name.startswith(".step-"):
        raise CheckpointError(f"{path} is a checkpoint that was not finished. Give another one of its run.")
    if step_of(resolved) is not None:
        folder = RunFolder(resolved.parent.parent)
        if not folder.tokenizer.is_dir():
            raise CheckpointError(f"{path} lies outside its run, where its tokenizer is. Put it back, or give the run.")
        return folder, resolved
    folder = RunFolder(path)
    folder.load_config()  # refuses what is no run folder
    newest = Checkpoints(folder.checkpoints).newest()
    if newest is None and folder.model.is_file():
        return folder, folder.root  # its checkpoints were removed, and the model it ended with was not
    if newest is None:
        raise CheckpointError(f"{path} has no checkpoint: nothing was trained yet.")
    return folder, newest
