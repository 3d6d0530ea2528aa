"""What a run, a checkpoint or an exported model is and how it came about: by their small files and headers alone.

Needs no torch. What is missing, damaged or of another version is left out, as far as the rest says what the folder is.
"""

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from colakit.analysis.params import total_params
from colakit.checkpoint.contents import checkpoint_info, grouped, joined, tensors_of, weight_files
from colakit.checkpoint.folders import MANIFEST, MODEL_FILE, Checkpoints, step_of
from colakit.config.load import from_saved
from colakit.config.schema import ModelConfig, RunConfig, SourceConfig
from colakit.errors import CheckpointError, ConfigError
from colakit.records.info import CheckpointInfo, InfoRecord, ModelShape, OptimizerInfo, TrainingInfo
from colakit.records.machine import MachineRecord
from colakit.records.run import EvalRecord
from colakit.train.listing import list_runs
from colakit.train.metrics import record_of
from colakit.train.runs import CONFIG_FILE, ORIGIN_FILE, STATE_FILE, TOTALS_FILE, RunFolder
from colakit.train.totals import Totals

_ASIDE = ".step-"
"""How the name of a checkpoint begins that is being written or removed."""

T = TypeVar("T")
Json = dict[str, Any]  # Any: JSON values


def describe(path: Path, *, each_tensor: bool = False) -> InfoRecord:
    """What the folder `path` holds: a run, a checkpoint wherever it lies, an exported model, or another model.

    Tensors that are alike but for the number of their block are taken together, unless `each_tensor`. A run's are those
    of its newest checkpoint that is whole as far as sizes tell. Raises CheckpointError for anything else, and for what
    is half-written or cut short.
    """
    try:
        record = _record(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Check its name and permissions.") from error
    return record if each_tensor else replace(record, tensors=tuple(grouped(record.tensors)))


def _record(path: Path) -> InfoRecord:
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such folder. Give a run (`colakit runs` lists them), one of its checkpoints or an exported "
            "model."
        )
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file. Give the folder it is in, {path.absolute().parent}.")
    resolved = path.resolve()  # a link, or "." inside a checkpoint
    folder = RunFolder(path)
    if resolved.name.startswith(_ASIDE):
        raise CheckpointError(
            f"{path} is a checkpoint that is being written or removed, or never came to its end. {_others(resolved)}"
        )
    if (path / MANIFEST).is_file():
        return _checkpoint(path)
    if "model_type" in _json(folder.config):
        return _transformers(path)
    if folder.checkpoints.is_dir():
        return _run(folder)
    if step_of(resolved) is not None or (path / STATE_FILE).is_file():
        raise CheckpointError(
            f"{path} is half a checkpoint: {MANIFEST}, which is written last, is missing. {_others(resolved)}"
        )
    if folder.config.is_file():
        return _run(folder)
    raise CheckpointError(f"{path} holds neither a run nor a checkpoint nor a model. {_inside(path)}")


def _others(checkpoint: Path) -> str:
    """What to give instead of one that is not whole."""
    there = ", ".join(str(path) for path in Checkpoints(checkpoint.parent).all() if path != checkpoint)
    return f"Give another: {there}." if there else "There is no other beside it: give a whole one, or a run."


def _inside(path: Path) -> str:
    """What to give instead of a folder of runs or of checkpoints."""
    if checkpoints := Checkpoints(path).all():
        return f"It holds checkpoints. Give one of them, such as {checkpoints[-1]}, or their run."
    if runs := list_runs(path):
        return f"It holds runs. Give one of them, such as {runs[-1].folder}; `colakit runs {path}` lists them."
    return "Give a run (`colakit runs` lists them), one of its checkpoints or an exported model."


def _run(folder: RunFolder) -> InfoRecord:
    config = folder.load_config()
    (listing,) = list_runs(folder.root)
    checkpoints = tuple(_checkpoint_infos(folder))
    whole = [weight_files(Path(each.folder)) for each in checkpoints if each.fault is None]
    weights = whole[-1] if whole else weight_files(folder.root)
    totals = _totals(Path(checkpoints[-1].folder)) if checkpoints else Totals()
    for evaluation in _evaluations(folder.metrics):  # there may be more than the checkpoint knows of
        totals.note(evaluation)
    data = _json(folder.data)
    record = InfoRecord(
        path=str(folder.root),
        what="run",
        written=_time(Path(checkpoints[-1].folder) if checkpoints else folder.config),
        tokenizer_tokens=_of_type(int, data.get("tokenizer_tokens")),
        training=replace(
            _training(totals, listing.steps, config),
            state=listing.state,
            resume=listing.resume,
            last_loss=listing.last_loss,
        ),
        data_fingerprint=_of_type(str, data.get("fingerprint")),
        machine=_machine(folder.environment),
        checkpoints=checkpoints,
    )
    return _with_config(_with_tensors(record, weights), config)


def _checkpoint(path: Path) -> InfoRecord:
    folder, totals = RunFolder(path), _totals(path)
    config = _config(_json(folder.config))
    data = _json(path / STATE_FILE).get("data")
    found = checkpoint_info(path)
    steps = totals.steps or found.step
    record = InfoRecord(
        path=str(path),
        what="checkpoint",
        written=_time(path / MANIFEST),
        training=_training(totals, steps, config),
        data_fingerprint=_of_type(str, data.get("fingerprint")) if isinstance(data, dict) else None,
        machine=_machine(folder.environment),
        checkpoints=(replace(found, step=steps),),
    )
    return _with_config(_with_tensors(record, weight_files(path) or [folder.model]), config)


def _transformers(path: Path) -> InfoRecord:
    values, own = _json(path / CONFIG_FILE), _json(path / ORIGIN_FILE)
    config = _config(own.get("run"))
    files = _weight_files(path)
    architectures = values.get("architectures")
    tokenizer = path / "tokenizer.json"
    is_export = values["model_type"] == "colakit"
    record = InfoRecord(
        path=str(path),
        what="export" if is_export else "transformers",
        written=_time(path / CONFIG_FILE),
        model_type=str(values["model_type"]),
        architectures=tuple(map(str, architectures)) if isinstance(architectures, list) else (),
        preset=_of_type(str, own.get("preset")),
        tokenizer=tokenizer.name if tokenizer.is_file() else None,
        tokenizer_tokens=_vocabulary(tokenizer),
        training=_training(Totals(), _of_type(int, own.get("steps")), config) if is_export else None,
        data_fingerprint=_of_type(str, own.get("data_fingerprint")),
    )
    record = _with_config(_with_tensors(record, files), config)
    return _with_model(record, values) if is_export else record


def _checkpoint_infos(folder: RunFolder) -> Iterator[CheckpointInfo]:
    for path in Checkpoints(folder.checkpoints).all():
        with suppress(FileNotFoundError):  # removed by the run, which goes on meanwhile
            yield checkpoint_info(path)


def _weight_files(path: Path) -> list[Path]:
    """The one file, or those that an index names."""
    if files := weight_files(path):
        return files
    names = _json(path / f"{MODEL_FILE}.index.json").get("weight_map")
    if isinstance(names, dict) and names:
        return [path / str(name) for name in sorted(set(names.values()))]
    raise CheckpointError(f"{path} has no {MODEL_FILE}. Give a model whose weights are there, as safetensors.")


def _with_tensors(record: InfoRecord, files: list[Path]) -> InfoRecord:
    tensors = tuple(joined(tensor for file in files for tensor in tensors_of(file)))
    size = sum(math.prod(tensor.shape) for tensor in tensors)
    return replace(record, tensors=tensors, parameters=size if files else None)


def _with_config(record: InfoRecord, config: RunConfig | None) -> InfoRecord:
    """`record` with what the run's configuration says."""
    if config is None:
        return record
    optim, train = config.optim, config.train
    return replace(
        _with_model(record, config.model.model_dump()),
        preset=record.preset or config.preset,
        tokenizer=record.tokenizer or config.data.tokenizer,
        optimizer=OptimizerInfo(optim.optimizer, optim.lr, optim.weight_decay, optim.warmup_steps, train.batch_size),
        sources={name: _read_by(source) for name, source in config.data.mixture.items()},
    )


def _with_model(record: InfoRecord, values: Json) -> InfoRecord:
    """`record` with the model that `values` configure, as far as they do; of others among them it takes no notice."""
    names = [field.name for field in fields(ModelShape)]
    present = {name: values[name] for name in names if name in values}
    try:
        model = ModelConfig.model_validate(present)
    except ValidationError:
        return record
    shape = ModelShape(**model.model_dump(include=set(present)))
    return replace(record, model=shape, expected_parameters=total_params(model) if len(present) == len(names) else None)


def _read_by(source: SourceConfig) -> str:
    """What a source reads, as its fields say it."""
    if source.source == "stdlib":
        return "the Python library"
    return source.path or " ".join(filter(None, (source.dataset, source.dataset_config, source.dataset_split)))


def _training(totals: Totals, steps: int | None, config: RunConfig | None) -> TrainingInfo:
    return TrainingInfo(
        steps=steps,
        max_steps=config.train.max_steps if config is not None else None,
        last_loss=totals.last_loss,
        evaluation=totals.evaluation,
        best_loss=totals.best_loss,
        best_step=totals.best_step,
        train_s=totals.train_s if totals.steps else None,
    )


def _totals(checkpoint: Path) -> Totals:
    try:
        return Totals.from_dict(_json(checkpoint / TOTALS_FILE))
    except (KeyError, TypeError):
        return Totals()


def _evaluations(metrics: Path) -> list[EvalRecord]:
    found = []
    for line in metrics.read_bytes().splitlines() if metrics.is_file() else ():
        if b'"eval"' in line:  # the many others need not be parsed
            with suppress(ValueError, KeyError, TypeError):  # cut short, or of another version
                record = record_of(json.loads(line))
                found += [record] if isinstance(record, EvalRecord) else []
    return found


def _config(values: Any) -> RunConfig | None:  # Any: JSON values
    if not values:
        return None  # not the defaults, which an empty table stands for
    try:
        return from_saved(values)
    except ConfigError:
        return None


def _machine(path: Path) -> MachineRecord | None:
    values = _json(path)
    values.pop("kind", None)
    try:
        return MachineRecord(**values)
    except TypeError:  # of another version
        return None


def _vocabulary(tokenizer: Path) -> int | None:
    """How many tokens a ``tokenizer.json`` holds."""
    try:
        content = _json(tokenizer)
        own = content["model"]["vocab"]  # a table of ids, or a list of pairs
        words = set(own) if isinstance(own, dict) else {word for word, _ in own}
        return len(words | {each["content"] for each in content["added_tokens"]})
    except (KeyError, TypeError, ValueError):
        return None


def _json(path: Path) -> Json:
    """The table in `path`; an empty one where there is none."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _of_type(kind: type[T], value: object) -> T | None:
    return value if isinstance(value, kind) else None


def _time(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime).astimezone().isoformat(timespec="seconds")
