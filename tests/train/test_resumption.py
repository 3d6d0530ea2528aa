"""What a run goes on from: which checkpoint, under which configuration and data, and what is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from colakit.checkpoint.folders import Checkpoints
from colakit.config.load import override, resolve
from colakit.errors import CheckpointError, ConfigError, DataError, RunError
from colakit.train.listing import list_runs
from colakit.train.lock import RunLock
from colakit.train.resume import MAY_CHANGE, plan_resumption, refuse_changes
from tests.train.tiny_runs import Killed, end, evaluated, kill_at, make_config, records, run, trainer, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "poems.jsonl")


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed") / "run"
    run(root, make_config(corpus))
    return root


def kill(root: Path, corpus: Path, at: int, *sets: str, preset: str = "cola-fan-dropout-muon") -> None:
    with pytest.raises(Killed):
        run(root, make_config(corpus, *sets, preset=preset), kill_at(at))


def test_an_edited_configuration_is_told_and_the_checkpoints_is_used(
    corpus: Path, tmp_path: Path, undisturbed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kill(tmp_path / "run", corpus, 5)
    path = tmp_path / "run" / "config.json"
    honest = json.loads(path.read_text())
    told = f"{path} is not what the run was made with; the checkpoint's configuration is used."
    for section, field, value in (("train", "keep_last", 7), ("optim", "lr", 0.5)):
        path.write_text(json.dumps({**honest, section: {**honest[section], field: value}}))
        resumed = trainer(tmp_path / "run")
        resumed.sinks.close()
        resumed.folder.lock.release()
        assert (told in caplog.text) == (section == "optim"), "but for what may change"
        kept = 7 if field == "keep_last" else honest["train"]["keep_last"]
        assert json.loads(path.read_text()) == {**honest, "train": {**honest["train"], "keep_last": kept}}
    with pytest.raises(CheckpointError, match=r"config\.json is a file\. Give the folder of a run"):
        trainer(path)


@pytest.mark.parametrize("given", ["the run", "its checkpoint"])
def test_a_change_outlives_a_kill_before_the_next_checkpoint(
    corpus: Path, tmp_path: Path, undisturbed: Path, given: str
) -> None:
    root = tmp_path / "run"
    kill(root, corpus, 5, "train.checkpoint_every=4")
    changed = trainer(root, None, kill_at(6), sets=("train.max_steps=11", "train.keep_last=2"))
    with pytest.raises(Killed):
        changed.fit()
    listed = list_runs(root)
    assert (listed[0].steps, listed[0].max_steps) == (4, 11)
    assert run(root, at=None if given == "the run" else root / "checkpoints" / "step-00000004").steps == 11
    stored = json.loads((root / "checkpoints" / "step-00000011" / "config.json").read_text())
    assert (stored["train"]["max_steps"], stored["train"]["keep_last"]) == (11, 2)


def test_a_checkpoint_under_another_s_name_is_refused(corpus: Path, tmp_path: Path) -> None:
    kill(tmp_path / "run", corpus, 4)
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "step-00000003").rename(checkpoints / "step-00000006")
    with pytest.raises(CheckpointError, match=r"step-00000006 holds step 3\. Give it back its name: step-00000003\."):
        run(tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    ["optim.lr=0.5", "train.seed=4", "train.batch_size=8", "model.norm=pre", "data.val_fraction=0.2"],
)
def test_what_makes_it_another_run_is_refused_with_both_values(corpus: Path, tmp_path: Path, change: str) -> None:
    kill(tmp_path / "run", corpus, 3)
    before = records(tmp_path / "run")
    name, _, value = change.partition("=")
    with pytest.raises(ConfigError, match=rf"{name} = '?{value}'?: the run has .*another run") as caught:
        trainer(tmp_path / "run", sets=(change,))
    assert len(caught.value.problems) == 1
    assert records(tmp_path / "run") == before


def test_fields_that_may_change_exist(corpus: Path) -> None:
    values = make_config(corpus).model_dump()
    assert all(name in values[section] for section, _, name in (field.partition(".") for field in MAY_CHANGE))


def test_other_data_are_refused_and_the_same_elsewhere_are_not(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "poems.jsonl")
    kill(tmp_path / "run", corpus, 3)
    moved = corpus.rename(tmp_path / "elsewhere.jsonl")
    with pytest.raises(DataError, match="no such file"):
        trainer(tmp_path / "run")
    (tmp_path / "moved").mkdir()
    moved = moved.rename(tmp_path / "moved" / "poems.jsonl")
    with pytest.raises(DataError, match=r"no such file .* Where the data has moved: --set data\.path=PATH, of a named"):
        trainer(tmp_path / "run")
    resumed = trainer(tmp_path / "run", sets=(f'data.path="{moved}"',))
    resumed.sinks.close()
    resumed.folder.lock.release()
    moved.write_text(moved.read_text().replace("word1 ", "changed "))
    with pytest.raises(DataError, match=r"the data has changed since this run \(.*text_bytes \d+ then, \d+ now"):
        trainer(tmp_path / "run", sets=(f'data.path="{moved}"',))
    with pytest.raises(DataError, match=r"the data has changed since this run \("):
        evaluated(tmp_path / "run", [f'data.path="{moved}"'])
    moved.write_text(moved.read_text().replace("changed ", "word1 "))
    assert run(tmp_path / "run", sets=(f'data.path="{moved}"',)).steps == 8, "a refusal leaves the run as it was"


def test_a_run_whose_data_has_moved_is_evaluated_where_it_lies(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "poems.jsonl")
    run(tmp_path / "run", make_config(corpus))
    expected = evaluated(tmp_path / "run").val_loss
    (tmp_path / "moved").mkdir()
    moved = corpus.rename(tmp_path / "moved" / "poems.jsonl")
    with pytest.raises(DataError, match=r"no such file .* Where the data has moved: --set data\.path=PATH"):
        evaluated(tmp_path / "run")
    assert evaluated(tmp_path / "run", [f'data.path="{moved}"']).val_loss == expected
    with pytest.raises(ConfigError, match=r"the run is evaluated as it was trained\. Only data\.path"):
        evaluated(tmp_path / "run", [f'data.path="{moved}"', "data.val_fraction=0.5"])


def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_offered(corpus: Path, tmp_path: Path) -> None:
    kill(tmp_path / "run", corpus, 5)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "totals.json", "config.json"):
        path = checkpoints.path_of(4) / name
        content = path.read_bytes()
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 4]) + content[-1:])
        with pytest.raises(CheckpointError, match=rf"{path} is damaged: .*--resume {checkpoints.path_of(3)}`\.$"):
            trainer(tmp_path / "run")
        path.write_bytes(content)
    for step in (1, 2, 3):
        (checkpoints.path_of(step) / "state.json").unlink()
    (checkpoints.path_of(4) / "state.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"There is no whole checkpoint before it\.$"):
        trainer(tmp_path / "run")


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("{")])
def test_a_run_without_its_own_configuration_goes_on_with_its_checkpoints(
    corpus: Path, tmp_path: Path, undisturbed: Path, damage: Callable[[Path], object]
) -> None:
    kill(tmp_path / "run", corpus, 5)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    damage(tmp_path / "run" / "config.json")
    run(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == config
    assert end(tmp_path / "run") == end(undisturbed)


def test_what_has_no_checkpoint_cannot_be_resumed(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run folder"):
        trainer(tmp_path)
    kill(tmp_path / "run", corpus, 1)
    with pytest.raises(CheckpointError, match=r"has no checkpoint to go on from\. Remove it"):
        trainer(tmp_path / "run")


def test_a_run_folder_belongs_to_one_process(corpus: Path, tmp_path: Path) -> None:
    kill(tmp_path / "run", corpus, 3)
    other = RunLock(tmp_path / "run")
    other.acquire()
    assert RunLock(tmp_path / "run").is_held()
    with pytest.raises(RunError, match=r"process \d+ on .*, since .*, is training there"):
        trainer(tmp_path / "run")
    other.release()
    assert sorted(path.name for path in (tmp_path / "run").glob(".*")) == [".lock"], "nobody owns it"
    assert not RunLock(tmp_path / "run").is_held()
    (tmp_path / "run" / ".lock").touch()  # as a killed process leaves it
    assert run(tmp_path / "run").steps == 8
    assert not RunLock(tmp_path / "run").is_held()


def test_planning_reads_text_alone_and_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    kill(tmp_path / "run", corpus, 3)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    resumption = plan_resumption(tmp_path / "run", lambda stored: stored)
    assert RunLock(tmp_path / "run").is_held()
    resumption.folder.lock.release()
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != ".lock"}
    assert after == {path: time_ns for path, time_ns in before.items() if path.name != ".lock"}
    assert not list((tmp_path / "run").rglob("*.pt")), "no pickle anywhere"


def test_another_machine_and_another_schedule_are_said(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(tmp_path / "run", corpus, 5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    run(tmp_path / "run", sets=("train.max_steps=9",))
    assert re.search(r"threads: \d+ before, 77 here\. The run goes on, but not to the same bits\.", caplog.text)
    assert "train.max_steps is 9 now, not 8: the learning rate follows that schedule." in caplog.text


def test_a_staged_run_is_not_made_longer_where_that_moves_its_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = resolve("smollm2-stages", smoke_run=True).config
    longer = override(stored, ["train.max_steps=600"])
    with pytest.raises(ConfigError, match=r"train\.max_steps = 600: the run has 300, and data\.stages end at shares"):
        refuse_changes(stored, longer, steps=270)
    refuse_changes(stored, stored, steps=270)


def test_what_may_change_is_this_and_nothing_else() -> None:
    """Whatever else is added must be shown to keep the run what it is."""
    data = {"data.path", "data.cache_dir", "data.on_bad_record", "parallel.strategy", "parallel.timeout_s"}
    train = "max_steps micro_batch_size eval_every eval_tokens sample_tokens checkpoint_every checkpoint_every_min"
    others = "keep_last keep_every skip_spikes max_skipped memory_gib"
    assert data | {f"train.{name}" for name in (train + " " + others).split()} == MAY_CHANGE
