"""A whole run in miniature: what it records, saves and promises."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from colakit.build import build_model
from colakit.checkpoint.model_file import load_model
from colakit.config.load import resolve
from colakit.config.schema import RunConfig
from colakit.data.loader import Batch
from colakit.errors import CheckpointError, ColakitError, DataError, RunError
from colakit.records.run import EvalRecord, RunSummary, StepRecord
from colakit.train.runs import RunFolder
from colakit.train.sinks import JsonlSink, Sink, SinkSet, TensorBoardSink
from colakit.train.step import StepResult, TrainStep
from colakit.train.trainer import Trainer
from tests.train.tiny_runs import evaluated

SETS = (
    "model.d_model=32",
    "model.n_layers=2",
    "model.n_heads=4",
    "model.n_kv_heads=4",
    "model.d_ff=48",
    "model.vocab_size=320",
    "model.seq_len=24",
    "train.max_steps=6",
    "train.batch_size=4",
    "train.eval_every=2",
    "train.eval_tokens=500",
    "train.sample_tokens=5",
    "optim.warmup_steps=2",
    "data.val_fraction=0.1",
)


class Recorder:
    """Keeps the records; `on_step` may act on each step."""

    def __init__(self, on_step: Callable[[StepRecord], None] = lambda _: None) -> None:
        self.steps: list[StepRecord] = []
        self.evaluations: list[EvalRecord] = []
        self.closed = False
        self._on_step = on_step

    def step(self, record: StepRecord) -> None:
        self.steps.append(record)
        self._on_step(record)

    def evaluation(self, record: EvalRecord) -> None:
        self.evaluations.append(record)

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    lines = [
        json.dumps({"id": f"poem-{i}", "text": " ".join(f"word{(i * 7 + j) % 23} and {j}" for j in range(40))})
        for i in range(40)
    ]
    path = tmp_path / "poems.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def make_config(corpus: Path, *sets: str, preset: str = "cola-fan-dropout-muon") -> RunConfig:
    return resolve(preset, smoke_run=True, data=str(corpus), sets=[*SETS, *sets]).config


def run(config: RunConfig, out: Path, recorder: Recorder | None = None) -> RunSummary:
    recorder = recorder or Recorder()

    def sinks(folder: RunFolder) -> Sink:
        return SinkSet([recorder, JsonlSink(folder.metrics), TensorBoardSink(folder.tensorboard)])

    return Trainer(config, out=out, sinks=sinks).fit()


def test_a_run_records_saves_and_summarises(corpus: Path, tmp_path: Path) -> None:
    config = make_config(corpus)
    recorder = Recorder()
    summary = run(config, tmp_path / "run", recorder)
    folder = RunFolder(tmp_path / "run")

    assert [r.step for r in recorder.steps] == [1, 2, 3, 4, 5, 6]
    assert [r.step for r in recorder.evaluations] == [2, 4, 6]
    assert recorder.closed
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    kinds = [(line["kind"], line["step"]) for line in lines]
    assert kinds == [
        (kind, step) for two in (2, 4, 6) for kind, step in (("step", two - 1), ("step", two), ("eval", two))
    ]
    assert {"loss", "lr", "grad_norm", "tokens", "step_ms"} <= lines[0].keys()
    assert {"val_loss", "bits_per_byte", "accuracy", "tokens"} <= lines[2].keys()

    assert summary.steps == 6
    assert not summary.interrupted
    assert summary.tokens_seen == 6 * 4 * 24
    assert (summary.first_loss, summary.last_loss) == (recorder.steps[0].loss, recorder.steps[-1].loss)
    assert summary.val_loss == recorder.evaluations[-1].val_loss
    assert summary.gzip_bits_per_byte is not None
    assert summary.prompt
    assert json.loads(folder.summary.read_text())["val_loss"] == summary.val_loss
    assert folder.load_config() == config
    assert json.loads(folder.environment.read_text())["packages"]["torch"] == torch.__version__
    assert list(folder.tensorboard.glob("events.*"))


def test_tensorboard_has_every_scalar(corpus: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder = Recorder()
    run(make_config(corpus), tmp_path / "run", recorder)
    events = EventAccumulator(str(RunFolder(tmp_path / "run").tensorboard))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        *(
            f"train/{n}"
            for n in ("loss", "accuracy", "perplexity", "bits_per_byte", "lr", "grad_norm", "it_per_s", "tokens_per_s")
        ),
        "train/nan_count",
        "train/data_ms",
        *(f"val/{n}" for n in ("loss", "accuracy", "perplexity", "bits_per_byte")),
    }
    losses = events.Scalars("train/loss")
    assert [e.step for e in losses] == [1, 2, 3, 4, 5, 6]
    assert losses[2].value == pytest.approx(recorder.steps[2].loss)


@pytest.mark.parametrize("preset", ["cola-fan-dropout-muon", "original", "refined-tied"])
def test_the_saved_model_is_the_trained_one(corpus: Path, tmp_path: Path, preset: str) -> None:
    config = make_config(corpus, preset=preset)
    trainer = Trainer(config, out=tmp_path / "run", sinks=lambda _: Recorder())
    summary = trainer.fit()
    again = build_model(
        config.model_copy(update={"train": config.train.model_copy(update={"seed": 99})}), trainer.machine
    )
    load_model(again, tmp_path / "run")
    for (name, p), (_, q) in zip(trainer.model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(p, q), name
    again_scored = evaluated(tmp_path / "run")
    assert (again_scored.val_loss, again_scored.bits_per_byte) == (summary.val_loss, summary.bits_per_byte)
    names = load_file(tmp_path / "run" / "model.safetensors").keys()
    assert ("lm_head.weight" in names) == (preset == "original")


def test_the_saved_tokenizer_loads_in_transformers(corpus: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    trainer = Trainer(make_config(corpus), out=tmp_path / "run", sinks=lambda _: Recorder())
    trainer.fit()
    text = "word3 and 12 — naïve"
    tokenizer = AutoTokenizer.from_pretrained(RunFolder(tmp_path / "run").tokenizer)
    assert tokenizer.encode(text, add_special_tokens=False) == trainer.data.tokenizer.encode_batch([text])[0]


def test_same_seed_same_losses_and_another_seed_others(corpus: Path, tmp_path: Path) -> None:
    def losses(name: str, *sets: str) -> list[float]:
        recorder = Recorder()
        run(make_config(corpus, *sets), tmp_path / name, recorder)
        return [r.loss for r in recorder.steps]

    assert losses("a") == losses("b")
    assert losses("c", "train.seed=1") != losses("d")


def test_micro_batches_see_the_same_blocks(corpus: Path, tmp_path: Path) -> None:
    def losses(name: str, *sets: str) -> list[float]:
        recorder = Recorder()
        run(make_config(corpus, *sets, preset="cola-fan"), tmp_path / name, recorder)
        return [r.loss for r in recorder.steps]

    # cola-fan has no dropout, whose draws would depend on the split.
    assert losses("one", "train.micro_batch_size=1") == pytest.approx(losses("four"), rel=1e-4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_the_step_saves_and_summarises(corpus: Path, tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    recorder = Recorder(on_step=lambda r: os.kill(os.getpid(), number) if r.step == 3 else None)
    summary = run(make_config(corpus), tmp_path / "run", recorder)
    assert summary.interrupted
    assert 3 <= summary.steps <= 4  # the handler runs between two bytecodes after the signal
    assert summary.val_loss == recorder.evaluations[-1].val_loss
    assert evaluated(tmp_path / "run").val_loss == summary.val_loss
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_ignored(corpus: Path, tmp_path: Path) -> None:
    """As nohup has it of a closed terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        recorder = Recorder(on_step=lambda r: os.kill(os.getpid(), signal.SIGHUP) if r.step == 3 else None)
        summary = run(make_config(corpus), tmp_path / "run", recorder)
        assert (summary.steps, summary.interrupted) == (6, False)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_in_the_last_step_interrupts_nothing(corpus: Path, tmp_path: Path) -> None:
    recorder = Recorder(on_step=lambda r: os.kill(os.getpid(), signal.SIGINT) if r.step == 6 else None)
    summary = run(make_config(corpus), tmp_path / "run", recorder)
    assert (summary.steps, summary.interrupted) == (6, False)


@pytest.mark.parametrize("at", [2, 6], ids=["an evaluation on the way", "the last one"])
def test_a_signal_during_an_evaluation_costs_nothing(corpus: Path, tmp_path: Path, at: int) -> None:
    recorder = Recorder()
    recorder.evaluation = lambda r: os.kill(os.getpid(), signal.SIGINT) if r.step == at else None  # type: ignore[method-assign]
    summary = run(make_config(corpus), tmp_path / "run", recorder)
    assert (summary.steps, summary.interrupted) == (at, at < 6)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [r["step"] for r in map(json.loads, lines) if r["kind"] == "eval"] == list(range(2, at + 1, 2))
    assert evaluated(tmp_path / "run").val_loss == summary.val_loss


def test_the_model_is_saved_before_the_last_evaluation(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("colakit.train.held_out.HeldOut.evaluate", fails)
    recorder = Recorder()
    with pytest.raises(RunError, match=r"Out of memory .* goes on after step 6"):
        run(make_config(corpus, "train.eval_every=99"), tmp_path / "run", recorder)
    assert load_file(tmp_path / "run" / "model.safetensors")
    assert recorder.closed


def test_a_diverged_run_is_summarised(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def spoil(record: StepRecord) -> None:
        if record.step == 6:
            trainer.model.norm.weight.data.fill_(3e38)  # finite, and what comes of it is not

    trainer = Trainer(make_config(corpus), out=tmp_path / "run", sinks=lambda _: Recorder(on_step=spoil))
    summary = trainer.fit()
    assert summary.sample == ""
    assert "not finite" in caplog.text
    text = RunFolder(tmp_path / "run").summary.read_text()
    assert json.loads(text, parse_constant=pytest.fail)["val_loss"] is None  # strict JSON


@pytest.mark.parametrize("at", [1, 4])
def test_out_of_memory_names_a_smaller_micro_batch(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """What was trained is kept; where nothing was, no folder is."""
    trainer = Trainer(make_config(corpus), out=tmp_path / "new" / "run", sinks=lambda _: Recorder())
    honest = TrainStep.__call__

    def runs_out(self: TrainStep, step: int, batches: Sequence[Batch]) -> StepResult:
        if step + 1 == at:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return honest(self, step, batches)

    monkeypatch.setattr(TrainStep, "__call__", runs_out)
    with pytest.raises(RunError, match=rf"Out of memory at step {at}, .*train\.micro_batch_size=2"):
        trainer.fit()
    assert (tmp_path / "new").exists() == (at > 1)
    if at > 1:
        assert load_file(tmp_path / "new" / "run" / "checkpoints" / "step-00000003" / "model.safetensors")


def test_a_full_disk_keeps_the_weights(corpus: Path, tmp_path: Path) -> None:
    def full(record: StepRecord) -> None:
        if record.step == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunError, match=r"No space left on device\. Free some .* goes on after step 2\."):
        run(make_config(corpus), tmp_path / "run", Recorder(on_step=full))
    assert load_file(tmp_path / "run" / "checkpoints" / "step-00000002" / "model.safetensors")


def test_another_error_in_the_loop_is_not_dressed_up(corpus: Path, tmp_path: Path) -> None:
    def bug(_: StepRecord) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(make_config(corpus), tmp_path / "run", Recorder(on_step=bug))


def test_a_second_signal_stops_at_once(corpus: Path, tmp_path: Path) -> None:
    recorder = Recorder(on_step=lambda r: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)] and None)
    with pytest.raises(KeyboardInterrupt):
        run(make_config(corpus), tmp_path / "run", recorder)
    assert recorder.closed


def test_a_file_in_the_way_is_refused_before_the_data_is_read(corpus: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for out in (taken, taken / "below"):
        with pytest.raises(RunError, match="--out"):
            run(make_config(corpus), out)
    assert taken.read_text() == "mine"


def test_a_folder_with_something_in_it_is_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    with pytest.raises(RunError, match="nothing was overwritten"):
        run(make_config(corpus), tmp_path / "full")


@pytest.mark.parametrize(
    ("text", "sets", "message"),
    [
        ("", (), "empty"),
        ('{"text": "one document alone is nothing to hold out from"}', (), "is one group of documents"),
        ("not json", (), "line 1"),
        ('{"id": 1}', (), "text"),
        ("\n".join(json.dumps({"text": f"short {i}"}) for i in range(40)), ("model.seq_len=4096",), "seq_len"),
    ],
)
def test_bad_data_leaves_no_run_folder(tmp_path: Path, text: str, sets: tuple[str, ...], message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        run(make_config(path, *sets), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(corpus: Path, tmp_path: Path) -> None:
    trainer = Trainer(make_config(corpus), out=tmp_path / "run", sinks=lambda _: Recorder())
    trainer.data.tokenizer.save(tmp_path / "tokenizer")
    sets = (f'data.tokenizer="{tmp_path / "tokenizer"}"', "model.vocab_size=257")
    with pytest.raises(ColakitError, match=r"model\.vocab_size"):
        run(make_config(corpus, *sets), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_eval_refuses_what_is_no_finished_run(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no run folder.*printed\.$"):
        evaluated(tmp_path)
    run(make_config(corpus), tmp_path / "run")
    with pytest.raises(CheckpointError, match=rf"the newest finished one here is {tmp_path / 'run'}\.$"):
        evaluated(tmp_path)
    newest = tmp_path / "run" / "checkpoints" / "step-00000006"
    (newest / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match=r"step-00000006/model\.safetensors is damaged: 9 bytes"):
        evaluated(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        evaluated(tmp_path / "run")


def test_eval_works_from_another_folder(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    summary = run(make_config(Path(corpus.name)), tmp_path / "run")
    monkeypatch.chdir("/")
    assert evaluated(tmp_path / "run").val_loss == summary.val_loss


def test_eval_takes_the_machine_it_is_on_and_the_runs_own_tokenizer(corpus: Path, tmp_path: Path) -> None:
    """What a GPU trained, with a tokenizer folder that is gone since, is evaluated on a laptop."""
    first = Trainer(make_config(corpus), out=tmp_path / "first", sinks=lambda _: Recorder())
    first.data.tokenizer.save(tmp_path / "tokenizer")
    sets = (f'data.tokenizer="{tmp_path / "tokenizer"}"',)
    summary = run(make_config(corpus, *sets), tmp_path / "run")
    shutil.rmtree(tmp_path / "tokenizer")
    path = RunFolder(tmp_path / "run").config
    config = json.loads(path.read_text())
    config["train"] |= {"device": "cuda", "dtype": "bfloat16"}
    config["model"] |= {"attention": "flash"}
    path.write_text(json.dumps(config))
    assert evaluated(tmp_path / "run").val_loss == summary.val_loss


def test_eval_refuses_changed_data(corpus: Path, tmp_path: Path) -> None:
    run(make_config(corpus), tmp_path / "run")
    corpus.write_text(corpus.read_text().replace("word1 ", "changed "))
    with pytest.raises(DataError, match="has changed"):
        evaluated(tmp_path / "run")
