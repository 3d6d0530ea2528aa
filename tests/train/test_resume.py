"""A run that was killed and resumed is the run that was not: weights, optimizer, generators, data, records."""

import dataclasses
import json
import math
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from colakit.build import build_loader
from colakit.checkpoint.folders import Checkpoints
from colakit.config.presets import preset_names
from colakit.errors import ConfigError, RunError
from colakit.records.base import to_json
from colakit.records.run import EvalRecord, StepRecord
from colakit.train.held_out import HeldOut
from colakit.train.listing import list_runs
from colakit.train.totals import Totals
from tests.train.tiny_runs import Killed, On, end, evaluated, kill_at, make_config, records, run, trainer, write_corpus


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


@pytest.mark.parametrize("preset", preset_names())
def test_killed_and_resumed_it_is_the_undisturbed_run(corpus: Path, tmp_path: Path, preset: str) -> None:
    whole = run(tmp_path / "whole", make_config(corpus, preset=preset))
    kill(tmp_path / "killed", corpus, 4, preset=preset)
    resumed = run(tmp_path / "killed")
    assert end(tmp_path / "killed") == end(tmp_path / "whole")
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
    for name in ("first_loss", "last_loss", "val_loss", "tokens_seen", "nan_count", "steps", "epochs", "sample"):
        assert getattr(resumed, name) == getattr(whole, name), name
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == end(tmp_path / "whole")["model.safetensors"]


@pytest.mark.parametrize("at", range(2, 9))
def test_whenever_it_is_killed(corpus: Path, tmp_path: Path, undisturbed: Path, at: int) -> None:
    """In the step before an evaluation and in the one behind it, and again behind the first kill."""
    kill(tmp_path / "run", corpus, at)
    if at < 7:
        with pytest.raises(Killed):
            run(tmp_path / "run", None, kill_at(at + 1))
    run(tmp_path / "run")
    assert end(tmp_path / "run") == end(undisturbed)
    assert records(tmp_path / "run") == records(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_run_that_goes_on_as_if_there_had_been_none(
    corpus: Path, tmp_path: Path, undisturbed: Path, number: signal.Signals
) -> None:
    send = On(lambda record: os.kill(os.getpid(), number) if record.step == 3 else None)
    cut = run(tmp_path / "run", make_config(corpus, "train.checkpoint_every=99"), send)
    assert cut.interrupted
    assert (tmp_path / "run" / "checkpoints" / f"step-0000000{cut.steps}").is_dir()
    assert not run(tmp_path / "run").interrupted
    assert end(tmp_path / "run") == end(undisturbed)
    steps = [r for r in records(tmp_path / "run") if r["kind"] == "step"]
    assert steps == [r for r in records(undisturbed) if r["kind"] == "step"]


def test_a_second_signal_harms_nothing_that_is_saved(corpus: Path, tmp_path: Path, undisturbed: Path) -> None:
    twice = On(lambda record: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)] if record.step == 5 else None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", make_config(corpus), twice)
    run(tmp_path / "run")
    assert end(tmp_path / "run") == end(undisturbed)


def scalars(root: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(root / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    timed = ("it_per_s", "tokens_per_s", "data_ms")
    tags = [tag for tag in events.Tags()["scalars"] if not tag.endswith(timed)]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize("at", [4, 5, 6])
def test_tensorboard_goes_on_without_doubled_or_missing_steps(
    corpus: Path, tmp_path: Path, undisturbed: Path, at: int
) -> None:
    kill(tmp_path / "run", corpus, at, "train.checkpoint_every=2")
    # TensorBoard reads its files by their names: the second, then the process. No process is resumed within a second.
    time.sleep(1.1)
    run(tmp_path / "run")
    assert scalars(tmp_path / "run") == scalars(undisturbed)


def test_records_that_are_gone_are_told_and_tensorboard_is_not_doubled(
    corpus: Path, tmp_path: Path, undisturbed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kill(tmp_path / "run", corpus, 5)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    time.sleep(1.1)  # as above
    run(tmp_path / "run")
    assert "metrics.jsonl does not reach step 4: the records before are lost." in caplog.text
    assert [r["step"] for r in records(tmp_path / "run") if r["kind"] == "step"] == [5, 6, 7, 8]
    steps = [step for step, _ in scalars(tmp_path / "run")["train/loss"]]
    assert steps == list(range(1, 9))


def test_an_evaluation_that_a_kill_left_out_is_made_up_for(corpus: Path, tmp_path: Path, undisturbed: Path) -> None:
    """Between the checkpoint before it and its record."""

    class Kills(On):
        def evaluation(self, record: EvalRecord) -> None:
            if record.step == 4:
                raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "run", make_config(corpus), Kills(lambda _: None))
    assert not [r for r in records(tmp_path / "run") if r["kind"] == "eval"]
    run(tmp_path / "run")
    assert records(tmp_path / "run") == records(undisturbed)
    assert end(tmp_path / "run") == end(undisturbed)


def test_what_a_kill_left_half_written_is_swept(corpus: Path, tmp_path: Path) -> None:
    kill(tmp_path / "run", corpus, 5)
    half = tmp_path / "run" / "checkpoints" / ".step-00000099"
    half.mkdir()
    run(tmp_path / "run")
    assert not half.exists()


def test_an_evaluation_that_was_recorded_is_not_repeated(
    corpus: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(tmp_path / "run", corpus, 5, "train.checkpoint_every=99")
    assert [r["step"] for r in records(tmp_path / "run") if r["kind"] == "eval"] == [4]
    resumed = trainer(tmp_path / "run", sets=("train.max_steps=8",))
    assert resumed.totals.best_step == 4
    resumed.fit()
    assert records(tmp_path / "run") == records(undisturbed)


def test_the_next_blocks_are_those_of_the_undisturbed_run(corpus: Path, tmp_path: Path) -> None:
    kill(tmp_path / "run", corpus, 4)
    resumed = trainer(tmp_path / "run")
    state = json.loads((resumed.folder.checkpoints / "step-00000003" / "state.json").read_text())
    assert (state["step"], state["data"]["next_block"], state["tokens"]) == (3, 12, 3 * 4 * 24)
    seen = []
    honest = resumed.loader.blocks_of
    resumed.loader.blocks_of = lambda step: seen.append((step, honest(step))) or honest(step)  # type: ignore[method-assign,func-returns-value]
    resumed.fit()
    loader = build_loader(resumed.config, resumed.data)
    assert seen == [(step, loader.blocks_of(step)) for step in range(3, 8)]


def test_without_the_generators_it_would_be_another_run(corpus: Path, tmp_path: Path, undisturbed: Path) -> None:
    """Else the tests above would prove nothing of dropout."""
    kill(tmp_path / "run", corpus, 4)
    resumed = trainer(tmp_path / "run")
    assert resumed._resumed is not None
    resumed._resumed["rng"]["torch"] = torch.Generator().manual_seed(99).get_state().numpy().tobytes().hex()
    resumed.fit()
    assert end(tmp_path / "run")["model.safetensors"] != end(undisturbed)["model.safetensors"]


def test_a_finished_run_goes_on_where_max_steps_is_raised(corpus: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", make_config(corpus, "train.max_steps=4"))
    with pytest.raises(RunError, match=r"is finished, at step 4\. To go on, raise --set train\.max_steps=N"):
        run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train\.max_steps = 3: 4 steps are made"):
        run(tmp_path / "run", sets=("train.max_steps=3",))
    (tmp_path / "run" / "summary.json").unlink()  # as a kill in the last evaluation leaves it
    again = run(tmp_path / "run")
    assert (again.steps, len([r for r in records(tmp_path / "run") if r["kind"] == "step"])) == (4, 4)
    longer = run(tmp_path / "run", sets=("train.max_steps=7",))
    assert (longer.steps, longer.tokens_seen) == (7, 7 * 4 * 24)
    assert [r["step"] for r in records(tmp_path / "run") if r["kind"] == "step"] == list(range(1, 8))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["max_steps"] == 7


def test_an_older_checkpoint_may_be_taken_and_the_later_ones_are_kept_aside(
    corpus: Path, tmp_path: Path, undisturbed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(undisturbed, tmp_path / "moved")
    run(tmp_path / "moved", at=tmp_path / "moved" / "checkpoints" / "step-00000005")
    assert end(tmp_path / "moved") == end(undisturbed)
    assert records(tmp_path / "moved") == records(undisturbed)
    aside = sorted(path.name for path in (tmp_path / "moved" / "checkpoints").glob("abandoned-*"))
    assert aside == [f"abandoned-step-0000000{step}" for step in (6, 7, 8)]
    assert "abandoned-step-00000008" in caplog.text


@pytest.mark.parametrize("damage", ["lost", "empty"])
def test_a_finished_run_without_its_model_is_finished_again(corpus: Path, tmp_path: Path, damage: str) -> None:
    run(tmp_path / "run", make_config(corpus))
    model = tmp_path / "run" / "model.safetensors"
    whole = model.read_bytes()
    with pytest.raises(RunError, match="is finished"):
        run(tmp_path / "run")
    model.unlink() if damage == "lost" else model.write_bytes(b"")
    assert list_runs(tmp_path / "run")[0].state == "interrupted"
    run(tmp_path / "run")
    assert model.read_bytes() == whole
    assert list_runs(tmp_path / "run")[0].state == "finished"


def test_a_smaller_micro_batch_is_the_same_run_to_rounding(corpus: Path, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", make_config(corpus, preset="cola"))
    kill(tmp_path / "run", corpus, 4, preset="cola")
    split = run(tmp_path / "run", sets=("train.micro_batch_size=2",))
    assert split.last_loss == pytest.approx(whole.last_loss, rel=1e-4)


def test_a_resumed_run_counts_the_time_of_the_parts_before_and_has_no_summary_until_its_end(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def now() -> float:
        clock[0] += 1e-4
        return clock[0]

    monkeypatch.setattr("time.perf_counter", now)

    def tick(record: StepRecord) -> None:
        clock[0] += 10.0
        assert record.step < 8 or not (tmp_path / "run" / "summary.json").exists()

    first = run(tmp_path / "run", make_config(corpus, "train.max_steps=7"), On(tick))
    assert first.train_s == pytest.approx(70.0, abs=1.0)
    clock[0] += 1000.0
    second = run(tmp_path / "run", None, On(tick), sets=("train.max_steps=9",))
    assert second.train_s == pytest.approx(90.0, abs=1.0)
    assert run(tmp_path / "run", None, On(tick), sets=("train.max_steps=10",)).train_s == pytest.approx(100.0, abs=1.0)


def test_records_are_flushed_before_the_checkpoint_that_counts_on_them(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    honest = Checkpoints.begin
    monkeypatch.setattr(Checkpoints, "begin", lambda self, step: (done.append(step), honest(self, step))[1])
    sink = On(lambda record: done.append("record"))
    monkeypatch.setattr(sink, "flush", lambda: done.append("flush"))
    run(tmp_path / "run", make_config(corpus, "train.max_steps=3", "train.eval_every=99"), sink)
    assert done == ["record", "flush", 1, "record", "flush", 2, "record", "flush", 3]


def test_retention_keeps_the_last_the_best_and_every_so_many(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = ("train.keep_last=2", "train.keep_every=5", "train.eval_every=2")
    losses = iter([3.0, 1.0, 2.0, 2.5])
    honest = HeldOut.evaluate

    def scripted(self: HeldOut, step: int) -> EvalRecord:
        return dataclasses.replace(honest(self, step), val_loss=next(losses))

    monkeypatch.setattr(HeldOut, "evaluate", scripted)
    run(tmp_path / "run", make_config(corpus, *sets))
    kept = {int(path.name[5:]) for path in Checkpoints(tmp_path / "run" / "checkpoints").all()}
    assert kept == {5, 7, 8, 4}, "step 4 was the best"


def test_a_checkpoint_is_taken_when_the_minutes_are_over(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def now() -> float:
        clock[0] += 1e-3
        return clock[0]

    monkeypatch.setattr("time.perf_counter", now)

    def tick(_record: StepRecord) -> None:
        clock[0] += 61.0

    config = make_config(corpus, "train.eval_every=99", "train.checkpoint_every=none", "train.checkpoint_every_min=3.0")
    run(tmp_path / "run", config, On(tick))
    steps = [int(path.name[5:]) for path in Checkpoints(tmp_path / "run" / "checkpoints").all()]
    assert steps == [3, 6, 8], "every third minute, and the end"


def test_the_window_of_spikes_is_that_of_the_undisturbed_run(corpus: Path, tmp_path: Path) -> None:
    sets = ("train.skip_spikes=3.0",)
    run(tmp_path / "whole", make_config(corpus, *sets))
    kill(tmp_path / "run", corpus, 5, *sets)
    run(tmp_path / "run")
    assert len(json.loads(end(tmp_path / "run")["state.json"])["guard"]["losses"]) == 8
    assert end(tmp_path / "run") == end(tmp_path / "whole")


def test_what_a_kill_left_is_evaluated(corpus: Path, tmp_path: Path, undisturbed: Path) -> None:
    kill(tmp_path / "run", corpus, 5)
    assert evaluated(tmp_path / "run").step == 4
    (told,) = (r for r in records(undisturbed) if r["kind"] == "eval" and r["step"] == 4)
    assert evaluated(tmp_path / "run").val_loss == told["val_loss"]


def test_a_loss_that_is_not_finite_is_never_the_best() -> None:
    totals = Totals()
    for step, loss in ((2, math.nan), (4, 3.0), (6, math.nan), (8, 3.5)):
        totals.note(EvalRecord(step, loss, 1.0, bits_per_byte=1.0, accuracy=0.5, tokens=1, text_bytes=1, eval_s=1.0))
    assert (totals.best_step, totals.best_loss) == (4, 3.0)


def test_totals_are_strict_json_and_come_back(corpus: Path, tmp_path: Path) -> None:
    kill(tmp_path / "run", corpus, 6)
    path = tmp_path / "run" / "checkpoints" / "step-00000005" / "totals.json"
    values = json.loads(path.read_text(), parse_constant=pytest.fail)
    totals = Totals.from_dict(values)
    assert (totals.steps, totals.tokens, totals.best_step) == (5, 5 * 4 * 24, 4)
    assert totals.to_dict() == values
    last = totals.evaluation
    assert last is not None
    for bad in (math.nan, math.inf):
        evaluation = (
            dataclasses.replace(totals.evaluation, val_loss=bad, step=9) if totals.evaluation else pytest.fail("none")
        )
        totals.note(evaluation)
        assert totals.best_step == 4
        again = Totals.from_dict(json.loads(to_json({**totals.to_dict(), "last_loss": bad})))
        assert again.evaluation is not None
        assert math.isnan(again.evaluation.val_loss)
        assert again.last_loss is not None
        assert math.isnan(again.last_loss)
