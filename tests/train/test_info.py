"""What is told of runs, checkpoints and exported models, against what is known of them."""

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from colakit.analysis.inventory import parameters
from colakit.build import lm_config
from colakit.checkpoint.contents import checkpoint_info, grouped, tensors_of
from colakit.errors import CheckpointError, ColakitError
from colakit.model.config import LMConfig
from colakit.records.info import InfoRecord, ModelShape, TensorInfo, TrainingInfo
from colakit.train.info import describe
from colakit.train.runs import RunFolder
from tests.train.tiny_runs import Killed, kill_at, make_config, run, write_corpus

EVALUATIONS = "train.eval_every=2"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that is ``whole`` and one that was ``cut`` after step 5; neither is to be changed."""
    folder = tmp_path_factory.mktemp("made")
    config = make_config(write_corpus(folder / "poems.jsonl"), EVALUATIONS)
    run(folder / "whole", config)
    with pytest.raises(Killed):
        run(folder / "cut", config, kill_at(5))
    return folder


@pytest.fixture
def whole(made: Path, tmp_path: Path) -> Path:
    """The whole run, to be changed."""
    return shutil.copytree(made / "whole", tmp_path / "run")


def evaluations(root: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (root / "metrics.jsonl").read_text().splitlines())
    return [values for values in lines if values["kind"] == "eval"]


def training(record: InfoRecord) -> TrainingInfo:
    assert record.training is not None
    return record.training


def test_a_run_is_told_as_it_was_recorded(made: Path) -> None:
    root = made / "whole"
    config = RunFolder(root).load_config()
    summary, data = (json.loads((root / name).read_text()) for name in ("summary.json", "data.json"))
    record = describe(root)
    assert (record.what, record.path, record.preset) == ("run", str(root), config.preset)
    model = config.model.model_dump()
    assert record.model == ModelShape(**{field.name: model[field.name] for field in fields(ModelShape)})
    assert record.parameters == record.expected_parameters == summary["parameters"]
    assert (record.tokenizer, record.tokenizer_tokens) == ("bpe", data["tokenizer_tokens"])
    assert record.data_fingerprint == summary["data_fingerprint"]
    assert record.sources == {"data": str(made / "poems.jsonl")}
    assert record.optimizer is not None
    assert (record.optimizer.name, record.optimizer.lr, record.optimizer.batch_size) == ("muon", config.optim.lr, 4)
    assert record.machine is not None
    assert record.machine.to_dict() == json.loads((root / "environment.json").read_text())
    assert (record.model_type, record.architectures) == (None, ())

    t, recorded = training(record), evaluations(root)
    assert (t.state, t.steps, t.max_steps, t.resume) == ("finished", 8, 8, None)
    assert t.last_loss == summary["last_loss"]
    assert t.evaluation is not None
    assert (t.evaluation.step, t.evaluation.val_loss) == (8, summary["val_loss"])
    best = min(recorded, key=lambda values: values["val_loss"])
    assert (t.best_step, t.best_loss) == (best["step"], best["val_loss"])
    assert t.train_s is not None
    assert 0.0 < t.train_s <= summary["train_s"]

    assert [(c.step, c.fault) for c in record.checkpoints] == [(step, None) for step in range(1, 9)]
    newest = Path(record.checkpoints[-1].folder)
    assert newest == root / "checkpoints" / "step-00000008"
    assert record.checkpoints[-1].n_bytes == sum(file.stat().st_size for file in newest.iterdir())


def test_its_tensors_are_those_of_the_file(made: Path) -> None:
    root = made / "whole"
    stored = load_file(root / "model.safetensors")
    each = describe(root, each_tensor=True).tensors
    assert {t.name: (t.shape, t.count, t.dtype) for t in each} == {
        name: (tuple(tensor.shape), 1, "F32") for name, tensor in stored.items()
    }
    groups = {t.name: t for t in describe(root).tensors}
    assert groups["blocks.*.mlp.down_proj.a"] == TensorInfo("blocks.*.mlp.down_proj.a", "F32", (12, 48), 2)
    assert groups["blocks.*.attention_norm.weight"].count == 1, "the first block's alone"
    assert sum(t.count for t in groups.values()) == len(stored)


def test_alike_is_alike_in_name_type_and_shape() -> None:
    blocks = [TensorInfo(f"blocks.{i}.a1.2b", "F32", (2, 3), 1) for i in range(12)]
    others = [TensorInfo("blocks.12.a1.2b", "BF16", (2, 3), 1), TensorInfo("blocks.13.a1.2b", "F32", (3, 2), 1)]
    assert grouped([*blocks, *others]) == [
        TensorInfo("blocks.*.a1.2b", "F32", (2, 3), 12),
        TensorInfo("blocks.*.a1.2b", "BF16", (2, 3), 1),
        TensorInfo("blocks.*.a1.2b", "F32", (3, 2), 1),
    ]


def test_no_tensor_is_read(tmp_path: Path) -> None:
    """A terabyte, which no disk here holds: the file is a hole behind its header. Blocks come by their numbers."""
    size = 2**40
    header = {
        "blocks.10.w": {"dtype": "BF16", "shape": [size // 4], "data_offsets": [0, size // 2]},
        "blocks.9.w": {"dtype": "F8_E4M3", "shape": [2, size // 4], "data_offsets": [size // 2, size]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    assert tensors_of(path) == [
        TensorInfo("blocks.9.w", "F8_E4M3", (2, size // 4), 1),
        TensorInfo("blocks.10.w", "BF16", (size // 4,), 1),
    ]


def test_a_run_that_was_cut_has_evaluations_behind_its_checkpoint(made: Path, tmp_path: Path) -> None:
    root = shutil.copytree(made / "cut", tmp_path / "a run")
    record = describe(root)
    t = training(record)
    assert (t.state, t.steps, t.max_steps) == ("interrupted", 4, 8)
    assert t.resume == f"colakit train --resume '{root}'"
    for step in (4, 3):  # whose evaluation, after it was written, only the metrics tell of
        shutil.rmtree(root / "checkpoints" / f"step-{step:08}")
    t = training(describe(root))
    assert t.evaluation is not None
    assert (t.steps, t.evaluation.step, t.evaluation.val_loss) == (2, 4, evaluations(root)[-1]["val_loss"])


def test_without_metrics_the_checkpoint_tells_the_losses(whole: Path) -> None:
    totals = json.loads((whole / "checkpoints" / "step-00000008" / "totals.json").read_text())
    with (whole / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"kind": "eval", "step": 9, "from": "another version"}\n[]\n{"kind": "eval", "st')
    assert training(describe(whole)).evaluation is not None
    (whole / "metrics.jsonl").unlink()
    t = training(describe(whole))
    assert t.evaluation is not None
    assert (t.evaluation.step, t.best_loss, t.best_step) == (6, totals["best_loss"], totals["best_step"])
    assert t.last_loss is None


def test_a_run_without_a_checkpoint_has_the_parameters_of_its_configuration(whole: Path) -> None:
    shutil.rmtree(whole / "checkpoints")
    (whole / "model.safetensors").unlink()
    for name in ("data.json", "environment.json", "metrics.jsonl"):
        (whole / name).write_text("[")
    record = describe(whole)
    assert record.parameters is None
    assert record.tensors == record.checkpoints == ()
    assert record.expected_parameters == sum(p.size for p in parameters(RunFolder(whole).load_config().model))
    assert (record.machine, record.data_fingerprint, record.tokenizer_tokens) == (None, None, None)
    t = training(record)
    assert (t.steps, t.evaluation, t.best_loss, t.train_s) == (0, None, None, None)


def test_a_file_of_another_model_is_counted_as_it_is(whole: Path) -> None:
    path = whole / "checkpoints" / "step-00000008"
    tensors = load_file(path / "model.safetensors")
    size = sum(t.numel() for t in tensors.values())
    save_file({**tensors, "more": torch.zeros(3, 5)}, path / "model.safetensors")
    record = describe(path)
    assert (record.parameters, record.expected_parameters) == (size + 15, size)
    assert record.checkpoints[0].fault is not None


@pytest.mark.parametrize("name", ["step-00000005", "best"])
def test_a_checkpoint_is_known_away_from_its_run(made: Path, tmp_path: Path, name: str) -> None:
    path = shutil.copytree(made / "whole" / "checkpoints" / "step-00000005", tmp_path / name)
    record, of_run = describe(path), describe(made / "whole")
    assert record.what == "checkpoint"
    for same in ("preset", "model", "parameters", "expected_parameters", "tensors", "optimizer", "sources"):
        assert getattr(record, same) == getattr(of_run, same), same
    assert record.data_fingerprint == of_run.data_fingerprint
    assert record.machine == of_run.machine
    t = training(record)
    assert t.evaluation is not None
    assert (t.state, t.steps, t.max_steps, t.evaluation.step) == (None, 5, 8, 4)
    assert [(c.step, c.fault) for c in record.checkpoints] == [(5, None)]
    for gone in ("config.json", "environment.json", "state.json", "totals.json"):
        (path / gone).unlink()
    record = describe(path)
    assert (record.parameters, record.preset, record.model, record.optimizer) == (of_run.parameters, None, None, None)
    assert (record.expected_parameters, record.data_fingerprint, record.machine) == (None, None, None)
    (path / "config.json").write_text("{}")
    assert describe(path).model is None, "an empty configuration is not the default one"


def test_a_fault_is_the_first_file_that_is_not_as_it_was_written(whole: Path) -> None:
    checkpoints = whole / "checkpoints"

    def fault(step: int) -> str | None:
        return checkpoint_info(checkpoints / f"step-{step:08}").fault

    assert fault(1) is None
    (checkpoints / "step-00000008" / "model.safetensors").write_bytes(b"cut")
    (checkpoints / "step-00000007" / "optimizer.safetensors").unlink()
    (checkpoints / "step-00000006" / "manifest.json").unlink()
    (checkpoints / "step-00000005" / "manifest.json").write_text('{"schema": 1, "files": 3}')
    manifest = checkpoints / "step-00000004" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema": 2}))
    assert [fault(step) for step in (8, 7, 6, 5, 4, 3)] == [
        f"model.safetensors has 3 bytes, not the {(whole / 'model.safetensors').stat().st_size:,} written",
        "optimizer.safetensors is missing",
        "manifest.json is missing",
        "manifest.json is damaged",
        "of schema 2, which this colakit does not read",
        None,
    ]
    (whole / "model.safetensors").write_bytes(b"cut")
    hold_another_model(checkpoints / "step-00000001")
    record = describe(whole)
    assert record.parameters == record.expected_parameters, "of the newest that is whole"
    with pytest.raises(CheckpointError, match=r"step-00000008.model\.safetensors: not a readable .* cut short"):
        describe(checkpoints / "step-00000008")


def hold_another_model(checkpoint: Path) -> None:
    """As if it had been written so."""
    save_file({"w": torch.zeros(3)}, checkpoint / "model.safetensors")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["model.safetensors"]["bytes"] = (checkpoint / "model.safetensors").stat().st_size
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def export(made: Path, path: Path, **own: Any) -> Path:
    """A folder as `transformers` keeps one, with `own` in its colakit.json."""
    root = made / "whole"
    shutil.copytree(root / "tokenizer", path)
    config = lm_config(RunFolder(root).load_config().model, "sdpa")
    values = {field.name: getattr(config, field.name) for field in fields(LMConfig)}
    theirs = {"model_type": "colakit", "architectures": ["ColakitForCausalLM"], "transformers_version": "5.0.0"}
    (path / "config.json").write_text(json.dumps({**theirs, **values}))
    (path / "colakit.json").write_text(json.dumps({"schema": 1, **own}))
    weights = {f"model.{name}": t.bfloat16() for name, t in load_file(root / "model.safetensors").items()}
    save_file(weights, path / "model.safetensors")
    return path


def test_an_export_is_told_with_its_run(made: Path, tmp_path: Path) -> None:
    config = json.loads((made / "whole" / "config.json").read_text())
    path = export(made, tmp_path / "out", preset="mine", steps=7, run=config, data_fingerprint="0123")
    record, of_run = describe(path), describe(made / "whole")
    assert (record.what, record.model_type, record.architectures) == ("export", "colakit", ("ColakitForCausalLM",))
    for same in ("model", "parameters", "expected_parameters", "optimizer", "sources", "tokenizer_tokens"):
        assert getattr(record, same) == getattr(of_run, same), same
    assert {t.dtype for t in record.tensors} == {"BF16"}
    assert (record.preset, record.tokenizer, record.data_fingerprint) == ("mine", "tokenizer.json", "0123")
    t = training(record)
    assert (t.state, t.steps, t.max_steps, t.evaluation) == (None, 7, 8, None)
    assert record.checkpoints == ()


def test_an_export_may_lack_any_part_but_the_model(made: Path, tmp_path: Path) -> None:
    path = export(made, tmp_path / "out", steps="7", run={"preset": 3})
    size = describe(made / "whole").parameters
    values = json.loads((path / "config.json").read_text())
    t = training(describe(path))
    assert (t.steps, t.max_steps) == (None, None)
    for name in ("colakit.json", "tokenizer.json"):
        (path / name).unlink()
    values.pop("d_ff")
    (path / "config.json").write_text(json.dumps(values))
    record = describe(path)
    assert record.model is not None
    assert (record.model.d_ff, record.model.d_model, record.expected_parameters) == (None, 32, None)
    assert (record.preset, record.tokenizer, record.optimizer, record.sources) == (None, None, None, {})
    (path / "config.json").write_text(json.dumps({**values, "d_model": "wide", "architectures": None}))
    record = describe(path)
    assert (record.model, record.architectures, record.parameters) == (None, (), size)


def test_a_model_of_another_kind_is_counted_over_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2"], "n_layers": "none"}')
    save_file({"h.0.w": torch.zeros(3, 5), "h.1.w": torch.zeros(3, 5)}, tmp_path / "one.safetensors")
    save_file({"ln.w": torch.zeros(7, dtype=torch.float16)}, tmp_path / "two.safetensors")
    save_file({"h.0.w": torch.zeros(11)}, tmp_path / "another.safetensors")
    index = {"h.0.w": "one.safetensors", "h.1.w": "one.safetensors", "ln.w": "two.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    vocabulary = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": [{"content": "b"}, {"content": "c"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    record = describe(tmp_path)
    assert (record.what, record.model_type, record.architectures) == ("transformers", "gpt2", ("GPT2",))
    assert (record.parameters, record.expected_parameters, record.tokenizer_tokens) == (37, None, 3)
    assert record.tensors == (TensorInfo("h.*.w", "F32", (3, 5), 2), TensorInfo("ln.w", "F16", (7,), 1))
    assert (record.model, record.training) == (None, None)
    save_file({"all": torch.zeros(())}, tmp_path / "model.safetensors")
    assert describe(tmp_path).parameters == 1, "one file goes before an index, as transformers has it"


def half(whole: Path) -> Path:
    path = whole / "checkpoints" / "step-00000008"
    (path / "manifest.json").unlink()
    return path


def half_by_another_name(whole: Path) -> Path:
    return half(whole).rename(whole.parent / "copy")


def being_written(whole: Path) -> Path:
    path = whole / "checkpoints" / "step-00000008"
    return path.rename(path.with_name(f".{path.name}"))


def only_begun(whole: Path) -> Path:
    path = whole.parent / "step-00000009"
    path.mkdir()
    return path


def without_weights(whole: Path) -> Path:
    (whole.parent / "config.json").write_text('{"model_type": "gpt2"}')
    return whole.parent


def with_an_index_alone(whole: Path) -> Path:
    (whole.parent / "model.safetensors.index.json").write_text('{"weight_map": {"w": "gone.safetensors"}}')
    return without_weights(whole)


def header_cut_short(whole: Path) -> Path:
    path = whole / "checkpoints" / "step-00000008"
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:100])
    return path


def another_configuration(whole: Path) -> Path:
    shutil.rmtree(whole / "checkpoints")
    (whole / "config.json").write_text('{"train": {"max_step": 3}}')
    return whole


FAULTS = {
    "no-such": (lambda run: run / "nowhere", "no such folder. Give a run"),
    "a name too long": (lambda run: run / ("x" * 300), "cannot be read: File name too long"),
    "file": (lambda run: run / "model.safetensors", "is a file. Give the folder it is in, {run}."),
    "no model": (lambda run: run / "tokenizer", "holds neither a run nor a checkpoint nor a model. Give a run"),
    "runs": (lambda run: run.parent, "It holds runs. Give one of them, such as {run};"),
    "checkpoints": (lambda run: run / "checkpoints", "such as {run}/checkpoints/step-00000008, or their run."),
    "half": (half, "manifest.json, which is written last, is missing. Give another: {run}/checkpoints/step-00000001, "),
    "half, elsewhere": (half_by_another_name, "is half a checkpoint"),
    "aside": (being_written, "is being written or removed, or never came to its end. Give another: {run}/"),
    "begun": (only_begun, "is half a checkpoint: manifest.json, which is written last, is missing. There is no other"),
    "no weights": (without_weights, "has no model.safetensors. Give a model whose weights are there"),
    "no shard": (with_an_index_alone, "gone.safetensors: no such file. Give"),
    "cut header": (header_cut_short, "model.safetensors: not a readable safetensors file ("),
    "no run": (another_configuration, "max_step"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_told_of_is_one_error(whole: Path, fault: str) -> None:
    make, message = FAULTS[fault]
    with pytest.raises(ColakitError) as error:
        describe(make(whole))
    assert message.format(run=whole) in str(error.value)


def test_it_is_found_by_links_and_from_inside(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latest").symlink_to(made / "whole" / "checkpoints" / "step-00000005")
    assert training(describe(tmp_path / "latest")).steps == 5
    monkeypatch.chdir(made / "whole")
    assert describe(Path()).what == "run"
    monkeypatch.chdir(made / "whole" / "checkpoints" / "step-00000003")
    assert training(describe(Path())).steps == 3
