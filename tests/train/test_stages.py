"""Runs on mixtures, and on documents that do not see each other."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from colakit.build import build_loader, build_schedule
from colakit.config.load import override, resolve
from colakit.config.schema import RunConfig
from colakit.data.packing import PAD
from colakit.data.prepare import prepare
from colakit.data.split import Side
from colakit.errors import ConfigError
from colakit.model.documents import Documents
from colakit.model.lm import LM
from colakit.records.run import RunSummary, StepRecord
from colakit.train.inspection import inspect_data
from colakit.train.resume import Resumption, plan_resumption
from colakit.train.runs import RunFolder
from colakit.train.sinks import JsonlSink
from colakit.train.trainer import Trainer
from tests.train.tiny_runs import evaluated

SIZES = {
    "model": {
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 4,
        "d_ff": 48,
        "vocab_size": 300,
        "seq_len": 16,
    },
    "train": {"max_steps": 8, "batch_size": 5, "eval_every": 4, "eval_tokens": 400, "sample_tokens": 3},
    "optim": {"warmup_steps": 1},
}


@pytest.fixture
def mixture(tmp_path: Path, preset_toml: Callable[..., str]) -> RunConfig:
    """Two sources and three stages, whose boundaries fall inside a batch of five."""
    for name, word in (("a", "apple"), ("b", "bread")):
        rows = [json.dumps({"text": f"{word} {i} " * 12}) for i in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    sources = "\n".join(f'[data.sources.{n}]\nsource = "files"\npath = "{tmp_path}/{n}.jsonl"' for n in "ab")
    stages = (
        "[[data.stages]]\nuntil_tokens = 192\nweights = {a = 1.0}\n"  # 12 blocks of 16
        "[[data.stages]]\nuntil_frac = 0.7\nweights = {a = 1.0, b = 3.0}\n"  # to block 28 of 40
        "[[data.stages]]\nweights = {b = 1.0}\n"
    )
    preset = preset_toml(f"[data]\nval_fraction = 0.2\n{sources}\n{stages}")
    sets = [f"{s}.{k}={v}" for s, values in SIZES.items() for k, v in values.items()]
    return resolve(preset, sets=sets).config


@pytest.fixture
def preset_toml(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write


class Steps:
    """Keeps the steps' records."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def evaluation(self, record: object) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def fit(config: RunConfig, out: Path) -> tuple[Trainer, RunSummary]:
    trainer = Trainer(config, out=out, sinks=lambda folder: JsonlSink(folder.metrics))
    return trainer, trainer.fit()


def test_a_run_goes_through_its_stages(mixture: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "colakit")
    trainer, summary = fit(mixture, tmp_path / "run")
    sources = [block.source for step in range(8) for block in trainer.loader.blocks_of(step)]
    assert sources[:12] == ["a"] * 12
    assert sources[28:] == ["b"] * 12
    assert sources[12:28].count("a") in (3, 4, 5)
    stages = [record.getMessage() for record in caplog.records if "Stage" in record.getMessage()]
    assert stages == [
        "Stage 1 of 3 begins in step 1: a 100 %.",
        "Stage 2 of 3 begins in step 3: a 25 %, b 75 %.",
        "Stage 3 of 3 begins in step 6: b 100 %.",
    ]
    n_blocks = {name: len(blocks) for name, blocks in trainer.data.train.items()}
    assert summary.epochs == {name: sources.count(name) / n_blocks[name] for name in "ab"}
    assert 0.0 < summary.data_wait_frac < 1.0
    steps = [json.loads(line) for line in RunFolder(tmp_path / "run").metrics.read_text().splitlines()]
    assert all(0.0 <= record["data_ms"] <= record["step_ms"] for record in steps if record["kind"] == "step")
    described = json.loads(RunFolder(tmp_path / "run").data.read_text())
    assert described["sources"].keys() == {"a", "b"}
    assert described["documents"] == sum(each["documents"] for each in described["sources"].values())
    assert evaluated(tmp_path / "run").val_loss == pytest.approx(summary.val_loss, rel=1e-6)


def test_a_resumed_loader_goes_on_where_the_run_was(mixture: RunConfig, tmp_path: Path) -> None:
    trainer, _ = fit(mixture, tmp_path / "run")
    whole = list(trainer.loader.steps(0, 8, 2))
    for first in range(8):
        again = build_loader(mixture, trainer.data)
        rest = list(again.steps(first, 8, 2))
        assert all(
            torch.equal(a.tokens, b.tokens) and torch.equal(a.targets, b.targets)
            for one, other in zip(rest, whole[first:], strict=True)
            for a, b in zip(one, other, strict=True)
        )


def test_a_run_goes_on_where_a_named_source_has_moved(
    mixture: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = mixture.model_copy(update={"train": mixture.train.model_copy(update={"checkpoint_every": 4})})
    fit(config, tmp_path / "run")
    (tmp_path / "moved").mkdir()
    (tmp_path / "b.jsonl").rename(tmp_path / "moved" / "b.jsonl")
    checkpoint = RunFolder(tmp_path / "run").checkpoints / "step-00000004"
    monkeypatch.chdir(tmp_path / "moved")

    def plan(*sets: str) -> Resumption:
        return plan_resumption(checkpoint, lambda stored: override(stored, sets))

    with pytest.raises(
        ConfigError, match=r"data\.sources\.b\.part = '1/2': the run has None, and this makes it another"
    ):
        plan("data.sources.b.part=1/2")
    resumption = plan("data.sources.b.path=b.jsonl")
    assert Trainer(resumption.config, sinks=lambda _: Steps(), resume=resumption).fit().steps == 8
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["data"]["sources"]["b"]["path"] == str(tmp_path / "moved" / "b.jsonl")


def test_documents_that_shall_not_see_each_other_do_not(
    mixture: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Documents | None] = []
    honest = LM.hidden

    def watched(self: LM, tokens: torch.Tensor, documents: Documents | None = None) -> torch.Tensor:
        seen.append(documents)
        return honest(self, tokens, documents)

    monkeypatch.setattr(LM, "hidden", watched)
    apart = mixture.model_copy(update={"data": mixture.data.model_copy(update={"attend_across_documents": False})})
    trainer, summary = fit(apart, tmp_path / "apart")
    n_sampled = apart.train.sample_tokens
    assert all(documents is not None for documents in seen[:-n_sampled])
    first = next(documents for documents in seen if documents is not None)
    begins = trainer.loader.micro_batches(0, 5)[0].tokens == trainer.data.tokenizer.eot_id
    begins[:, 0] = True
    assert torch.equal(first.positions == 0, begins)
    assert evaluated(tmp_path / "apart").val_loss == pytest.approx(summary.val_loss, rel=1e-6)
    _, together = fit(mixture, tmp_path / "together")
    assert together.first_loss != pytest.approx(summary.first_loss, rel=1e-6)


def test_padded_documents_count_their_real_tokens(mixture: RunConfig, tmp_path: Path) -> None:
    padded = mixture.model_copy(update={"data": mixture.data.model_copy(update={"packing": "pad"})})
    steps = Steps()
    trainer = Trainer(padded, out=tmp_path / "pad", sinks=lambda _: steps)
    summary = trainer.fit()
    n_real = [sum(int((b.targets >= 0).sum()) for b in trainer.loader.micro_batches(step, 5)) for step in range(8)]
    assert [record.tokens for record in steps.steps] == n_real
    assert summary.tokens_seen == sum(n_real)
    assert all(batch.document_starts is None for batch in trainer.loader.micro_batches(0, 5))


def _changed(config: RunConfig, packing: str, max_steps: int) -> RunConfig:
    data, train = {"packing": packing}, {"max_steps": max_steps}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"seq_len": 40}),
            "data": config.data.model_copy(update=data),
            "train": config.train.model_copy(update=train),
        }
    )


@pytest.mark.parametrize("max_steps", [4, 8])
@pytest.mark.parametrize("packing", ["pack", "pad"])
def test_what_inspection_says_follows_from_the_blocks(mixture: RunConfig, packing: str, max_steps: int) -> None:
    """Counted block by block, from what a run would read; the third stage of the shorter one is not reached."""
    config = _changed(mixture, packing, max_steps)
    model = config.model
    data = prepare(config.data, seq_len=model.seq_len, vocab_size=model.vocab_size)
    record = inspect_data(config, data)
    for told, source in zip(record.sources, data.sources, strict=True):
        blocks = [source.train[i] for i in range(len(source.train))]
        targets = np.concatenate([block[1:] for block in blocks])
        assert told.padding_frac == pytest.approx((targets == PAD).mean())
        lengths = source.store.lengths[source.sides == Side.TRAIN]
        lost = np.maximum(0, lengths - model.seq_len).sum() if packing == "pad" else 0
        assert told.cut_frac == pytest.approx(lost / lengths.sum())
        n_tokens = told.train_tokens + told.held_out_tokens
        assert told.bytes_per_token == pytest.approx(told.text_bytes / n_tokens)
    loader = build_loader(config, data)
    seen = [block.source for step in range(config.train.max_steps) for block in loader.blocks_of(step)]
    for stage in record.stages:
        assert stage.blocks == {name: seen[stage.begin : stage.end].count(name) for name in data.train}
        epochs = {name: seen[: stage.end].count(name) / len(data.train[name]) for name in data.train}
        assert stage.epochs == pytest.approx(epochs)
    assert record.stages[-1].end == config.n_blocks == len(seen)


def test_the_seed_of_a_run_orders_its_mixture() -> None:
    orders = []
    for seed in (0, 1):
        config = resolve("smollm2-stages", smoke_run=True, sets=[f"train.seed={seed}"]).config
        schedule = build_schedule(config)
        orders.append([schedule.at(block)[0] for block in range(config.n_blocks)])
    assert orders[0] != orders[1]
