"""Every part of a run gets what it is meant to: configured values, data, mode of the model, records."""

import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from unittest.mock import Mock, call

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from colakit.analysis.params import total_params
from colakit.build import Machine, build_model, build_optimizer
from colakit.config.load import resolve
from colakit.config.schema import RunConfig
from colakit.data.loader import Batch, TrainLoader, held_out_batches
from colakit.data.mixture import Schedule
from colakit.errors import ColakitError, DataError, RunError
from colakit.evaluate.generate import Sampling, generate
from colakit.evaluate.text_bytes import gzip_bits_per_byte
from colakit.loss import IGNORE, LossSums, loss_sums
from colakit.parallel.wrap import Replica
from colakit.records.run import EvalRecord, RunSummary, StepRecord
from colakit.train.sinks import ConsoleSink, JsonlSink, SinkSet, TensorBoardSink
from colakit.train.step import TrainStep
from colakit.train.trainer import Trainer

T = 40
MODEL = ("d_model=32", "n_layers=2", "n_heads=4", "n_kv_heads=2", "d_ff=48", "vocab_size=320", f"seq_len={T}")
OPTIM = ("lr=0.01", "warmup_steps=2", "min_lr_frac=0.25", "grad_clip=0.37")
TRAIN = ("seed=3", "max_steps=6", "batch_size=4", "micro_batch_size=2", "eval_every=2", "eval_tokens=150")
SETS = (*(f"model.{s}" for s in MODEL), *(f"optim.{s}" for s in OPTIM), *(f"train.{s}" for s in TRAIN))

STEP = StepRecord(
    3,
    2.5,
    accuracy=0.25,
    bits_per_byte=3.0,
    lr=1e-3,
    grad_norm=0.75,
    tokens=4000,
    step_ms=500.0,
    data_ms=0.5,
    skipped=False,
    nan_count=0,
)
EVALUATION = EvalRecord(4, 2.25, 9.5, bits_per_byte=2.0, accuracy=0.5, tokens=1234, text_bytes=4000, eval_s=1.0)


class Watch:
    """A sink that also sees every forward pass, and a clock: one takes 1 s in training and 100 s in evaluation."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        self.evaluations: list[EvalRecord] = []
        self.trained: dict[int, list[Tensor]] = defaultdict(list)
        """Inputs in training mode, by the steps recorded before."""
        self.evaluated: dict[int, list[Tensor]] = defaultdict(list)
        """Inputs in evaluation mode, by the evaluations recorded before."""
        self.now = 1000.0

    def step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def evaluation(self, record: EvalRecord) -> None:
        self.evaluations.append(record)

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def forward(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        seen = self.trained[len(self.steps)] if module.training else self.evaluated[len(self.evaluations)]
        seen.append(inputs[0])
        self.now += 1.0 if module.training else 100.0


class Run(NamedTuple):
    trainer: Trainer
    watch: Watch
    summary: RunSummary
    torch_seed: int


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "poems.jsonl"
    poems = [" ".join(f"word{(i * 7 + j) % 23} and {j}" for j in range(12)) for i in range(24)]
    path.write_text("\n".join(json.dumps({"text": poem}) for poem in poems), encoding="utf-8")
    return path


def make_config(corpus: Path, *sets: str, preset: str = "cola-fan-dropout-muon") -> RunConfig:
    own = ("train.sample_tokens=5", "data.val_fraction=0.4")
    return resolve(preset, smoke_run=True, data=str(corpus), sets=[*SETS, *own, *sets]).config


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Six steps, each of two micro-batches; the gradients of the second and the fourth step are not finite."""
    watch = Watch()
    trainer = Trainer(make_config(corpus), out=tmp_path_factory.mktemp("run"), sinks=lambda _: watch)
    trainer.model.eval()  # whatever mode the model comes in
    trainer.model.tok_embed.register_forward_pre_hook(watch.forward)
    trainer.model.norm.weight.register_hook(lambda g: g * (math.nan if len(watch.steps) in (1, 3) else 1.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.perf_counter", lambda: watch.now)
        patch.setattr("colakit.train.trainer.first_bad_layer", lambda *_: "a layer")  # runs the batch once more
        summary = trainer.fit()
    return Run(trainer, watch, summary, torch.initial_seed())


def are_inputs_of(seen: Sequence[Tensor], batches: Sequence[Batch]) -> bool:
    return len(seen) == len(batches) and all(torch.equal(x, b.tokens) for x, b in zip(seen, batches, strict=True))


def real_tokens(batches: Sequence[Batch]) -> int:
    return sum(int((b.targets != IGNORE).sum()) for b in batches)


def test_each_step_trains_with_dropout_on_its_own_micro_batches(run: Run) -> None:
    only = Schedule(["data"], [{"data": 1.0}], [], seed=3)
    loader = TrainLoader(run.trainer.data.train, only, batch_size=4, seed=3)
    assert list(run.watch.trained) == list(range(6))
    for step, seen in run.watch.trained.items():
        assert are_inputs_of(seen, loader.micro_batches(step, 2)), step
    assert run.torch_seed == 3  # where dropout draws from


def test_each_evaluation_sees_the_same_held_out_tokens_up_to_eval_tokens(run: Run) -> None:
    held_out = run.trainer.data.held_out
    batches = list(held_out_batches(held_out, batch_size=2, max_tokens=150))
    assert sum(len(b.tokens) for b in batches) < len(held_out)
    # Due at 2, 4 and 6, but at 2 and 4 no update was made.
    assert [e.step for e in run.watch.evaluations] == [3, 5, 6]
    for number, record in enumerate(run.watch.evaluations):
        assert are_inputs_of(run.watch.evaluated[number], batches)
        assert record.tokens == real_tokens(batches) <= 150


def test_the_learning_rate_follows_the_configured_schedule(run: Run) -> None:
    # Two steps of warm-up, then 0.25 + 0.75·(1 + cos πx)/2 at x = 0, 1/4, 1/2 and 3/4; skipped steps count.
    expected = [0.5, 1.0, 1.0, 0.890165, 0.625, 0.359835]
    assert [r.lr / 0.01 for r in run.watch.steps] == pytest.approx(expected, rel=1e-5)
    assert run.trainer.step.grad_clip == 0.37


def test_skipped_steps_are_counted(run: Run) -> None:
    assert [r.skipped for r in run.watch.steps] == [False, True, False, True, False, False]
    assert [math.isnan(r.grad_norm) for r in run.watch.steps] == [r.skipped for r in run.watch.steps]
    assert [r.nan_count for r in run.watch.steps] == [0, 1, 1, 2, 2, 2]
    assert run.summary.nan_count == 2


def test_tokens_are_the_real_ones_and_their_rate_is_that_of_training_alone(run: Run) -> None:
    tokens = [real_tokens(run.trainer.loader.micro_batches(step, 4)) for step in range(6)]
    assert sum(tokens) < 6 * 4 * T  # the last block of the data is among them, and not full
    assert [r.tokens for r in run.watch.steps] == tokens
    assert run.summary.tokens_seen == sum(tokens)
    assert [r.step_ms for r in run.watch.steps] == [2000.0] * 6
    assert run.summary.tokens_per_s == pytest.approx(sum(tokens) / 12.0)
    assert run.summary.train_s == 12.0 + 100.0 * sum(len(run.watch.evaluated[number]) for number in range(3))


def test_the_summary_is_of_this_run_and_its_last_evaluation(run: Run) -> None:
    data, last, summary = run.trainer.data, run.watch.evaluations[-1], run.summary
    assert (summary.val_loss, summary.accuracy) == (last.val_loss, last.accuracy)
    assert summary.bits_per_byte == last.bits_per_byte
    scored = held_out_batches(data.held_out, batch_size=2, max_tokens=150)
    assert summary.gzip_bits_per_byte == gzip_bits_per_byte(scored, data.tokenizer.token_bytes)
    assert (summary.run_dir, summary.data_fingerprint) == (str(run.trainer.folder.root), data.fingerprint)
    assert summary.preset == "cola-fan-dropout-muon"
    assert all(0.0 <= r.accuracy <= 1.0 < r.loss for r in run.watch.steps)


def test_bits_per_byte_are_over_the_bytes_of_the_steps_own_targets(run: Run) -> None:
    token_bytes = run.trainer.data.tokenizer.token_bytes
    assert token_bytes is not None
    for step, record in enumerate(run.watch.steps):
        targets = torch.cat([b.targets for b in run.trainer.loader.micro_batches(step, 2)]).flatten().tolist()
        text = b"".join(token_bytes[t] for t in targets if t != IGNORE)
        assert record.bits_per_byte == pytest.approx(record.loss * record.tokens / math.log(2) / len(text))


def test_the_sample_continues_a_held_out_prompt_as_configured(run: Run) -> None:
    tokenizer = run.trainer.data.tokenizer
    document = tokenizer.encode_batch([run.trainer.data.prompt_text])[0]
    prompt = document[:32]
    n_ids = tokenizer.n_tokens
    assert len(document) > 32
    assert n_ids < 320
    sampling = Sampling(temperature=0.8, seed=3)
    ids = list(generate(run.trainer.model, prompt, 5, run.trainer.machine, n_ids=n_ids, sampling=sampling))
    assert (run.summary.prompt, run.summary.sample) == (tokenizer.decode(prompt), tokenizer.decode(ids))


@pytest.mark.parametrize("preset", ["original", "refined-tied"])
def test_parameters_are_counted_once_and_no_sample_is_empty(corpus: Path, tmp_path: Path, preset: str) -> None:
    config = make_config(corpus, "train.max_steps=3", "train.sample_tokens=0", preset=preset)
    summary = Trainer(config, out=tmp_path, sinks=lambda _: Watch()).fit()
    assert summary.parameters == total_params(config.model)
    assert summary.prompt
    assert summary.sample == ""


@pytest.mark.parametrize(("data", "out", "error"), [("gone", "new", DataError), ("poems", ".", RunError)])
def test_missing_data_and_a_taken_folder_are_refused_before_anything_is_prepared(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, data: str, out: str, error: type[ColakitError]
) -> None:
    monkeypatch.setattr("colakit.train.trainer.prepare", lambda *_, **__: pytest.fail("prepared"))
    with pytest.raises(error):
        Trainer(make_config(corpus.with_stem(data)), out=corpus.parent / out, sinks=lambda _: Watch())


def make_step(preset: str = "cola-fan", dtype: torch.dtype = torch.float32) -> TrainStep:
    config, machine = resolve(preset, smoke_run=True, sets=SETS).config, Machine(torch.device("cpu"), dtype)
    model = build_model(config, machine).train()
    return TrainStep(model, build_optimizer(model, config.optim), machine, lambda _: 0.01, 1.0, Replica(model))


def make_batches() -> list[Batch]:
    tokens = torch.randint(320, (4, T + 1), generator=torch.Generator().manual_seed(0))
    return [Batch(tokens=rows[:, :-1], targets=rows[:, 1:]) for rows in tokens.split(2)]


def test_accuracy_is_that_of_all_micro_batches() -> None:
    step = make_step()
    right, wrong = make_batches()
    with torch.no_grad():
        right = replace(right, targets=step.model(right.tokens).argmax(-1))
        wrong = replace(wrong, targets=step.model(wrong.tokens).argmin(-1))
    assert step(0, [right, wrong]).accuracy == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_loss_with_good_gradients_changes_no_weight(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    def bad_sums(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> LossSums:
        sums = loss_sums(x, weight, bias, targets)
        return sums._replace(nll=sums.nll + value)  # a constant, which no gradient sees

    monkeypatch.setattr("colakit.parallel.wrap.loss_sums", bad_sums)
    step = make_step()
    before = [p.detach().clone() for p in step.model.parameters()]
    result = step(0, make_batches())
    assert math.isfinite(result.grad_norm)
    assert result.skipped
    assert all(torch.equal(p, q) for p, q in zip(step.model.parameters(), before, strict=True))


def test_bfloat16_is_the_type_of_all_products_the_head_included(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, dtypes = nn.functional.linear, list[torch.dtype]()

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out = linear(x, weight, bias)
        dtypes.append(out.dtype)
        return out

    monkeypatch.setattr(nn.functional, "linear", watched)
    step = make_step(dtype=torch.bfloat16)
    result = step(0, make_batches())
    assert set(dtypes) == {torch.bfloat16}
    assert {p.dtype for p in step.model.parameters()} == {torch.float32}
    # Eight bits of mantissa are 0.4 % of one product, and errors of both signs in a mean over 160 tokens.
    assert result.loss == pytest.approx(make_step()(0, make_batches()).loss, rel=4e-3)


def test_tensorboard_gets_every_figure_under_its_name_and_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(tmp_path)
    sink.step(replace(STEP, nan_count=2))
    sink.evaluation(EVALUATION)
    sink.step(replace(STEP, step=5, loss=800.0))  # e^800 overflows
    sink.evaluation(replace(EVALUATION, step=6, bits_per_byte=None))
    sink.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()

    def at(step: int) -> dict[str, float]:
        return {tag: e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag) if e.step == step}

    figures = {"loss": 2.5, "accuracy": 0.25, "perplexity": 12.182494, "lr": 1e-3, "grad_norm": 0.75, "nan_count": 2}
    figures |= {"bits_per_byte": 3.0, "data_ms": 0.5, "it_per_s": 2.0, "tokens_per_s": 8000.0}
    train = {f"train/{name}": value for name, value in figures.items()}
    held_out = {"val/loss": 2.25, "val/accuracy": 0.5, "val/perplexity": 9.5}
    assert at(3) == pytest.approx(train)
    assert at(4) == pytest.approx({**held_out, "val/bits_per_byte": 2.0})
    assert at(5) == pytest.approx({**train, "train/loss": 800.0, "train/perplexity": math.inf, "train/nan_count": 0})
    assert at(6) == pytest.approx(held_out)


def test_json_lines_come_after_those_that_are_there_and_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "earlier"}\n')
    sink = JsonlSink(path)
    sink.step(STEP)
    sink.evaluation(replace(EVALUATION, val_loss=math.nan))
    assert path.read_text().count("\n") == 3  # before close
    sink.close()
    _, step, evaluation = (json.loads(line) for line in path.read_text().splitlines())
    assert step == STEP.to_dict()
    assert evaluation == {**EVALUATION.to_dict(), "val_loss": None}
    with pytest.raises(ValueError, match="closed"):
        sink.step(STEP)


def test_a_set_tells_all_its_sinks_and_closes_all_where_one_fails() -> None:
    sinks = [Mock(spec=JsonlSink) for _ in range(3)]
    sinks[1].close.side_effect = OSError("disk full")
    together = SinkSet(sinks)
    together.step(STEP)
    together.evaluation(EVALUATION)
    with pytest.raises(OSError, match="disk full"):
        together.close()
    for sink in sinks:
        assert sink.method_calls == [call.step(STEP), call.evaluation(EVALUATION), call.close()]


@pytest.mark.parametrize(
    ("width", "last"),
    [
        (40, r"step +3/40 loss 2\.500 ETA [-:\d]+"),
        (79, r"step +3/40 loss 2\.500 ETA [-:\d]+"),
        (80, r"step +3/40 [━╸╺]+ loss 2\.500  2\.00 it/s  8,000 tokens/s ETA [-:\d]+"),
    ],
)
def test_the_bar_is_one_line_and_rates_need_eighty_columns(width: int, last: str) -> None:
    stream = io.StringIO()
    sink = ConsoleSink(Console(file=stream, force_terminal=True, width=width), max_steps=40)
    sink.step(STEP)
    sink.close()
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\x1b[?25h")  # the cursor is back
    assert re.fullmatch(last, re.sub(r"\x1b\[[\d;?]*\w", "", text).split("\r")[-1].strip())


@pytest.mark.parametrize(("width", "shown"), [(40, "loss 2.500 ETA"), (80, "320,000 tokens/s  12 skipped ETA")])
def test_the_bar_never_cuts_a_figure(width: int, shown: str) -> None:
    stream = io.StringIO()
    sink = ConsoleSink(Console(file=stream, force_terminal=True, width=width), max_steps=10_000)
    sink.step(replace(STEP, step=1300, tokens=160_000, nan_count=12))
    sink.close()
    assert "1300/10000" in stream.getvalue()
    assert shown in stream.getvalue()


def test_rates_are_over_twenty_steps_and_no_line_is_broken_in_a_narrow_pipe() -> None:
    stream = io.StringIO()
    sink = ConsoleSink(Console(file=stream, width=40), max_steps=40)
    for step in range(1, 25):  # slow at first; then 2 it/s on average
        step_ms = 9000.0 if step <= 4 else 250.0 + 500.0 * (step % 2)
        sink.step(replace(STEP, step=step, step_ms=step_ms, nan_count=1))
    line = "step 24/40  loss 2.500  2.00 it/s  8,000 tokens/s  1 skipped  ETA 8 s"
    assert stream.getvalue().splitlines()[-1] == line


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = io.StringIO()
    sink = ConsoleSink(Console(file=stream, force_terminal=True, width=100), max_steps=40)
    sink.step(replace(STEP, step=1))
    sink.close()
    assert stream.getvalue().startswith("step 1/40  loss 2.500")
