"""Runs of a tiny model on a tiny corpus, and what is compared of them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from colakit.checkpoint.folders import Checkpoints
from colakit.config.load import override, resolve
from colakit.config.schema import RunConfig
from colakit.parallel.wrap import Replica
from colakit.records.run import EvalRecord, RunSummary, StepRecord
from colakit.train.held_out import HeldOut
from colakit.train.metrics import last_records
from colakit.train.resume import plan_resumption
from colakit.train.runs import RunFolder
from colakit.train.saved import held_out_of, open_saved
from colakit.train.sinks import JsonlSink, Sink, SinkSet, TensorBoardSink
from colakit.train.trainer import Trainer

SETS = (
    *("model.d_model=32", "model.n_layers=2", "model.n_heads=4", "model.n_kv_heads=4", "model.d_ff=48"),
    *("model.vocab_size=320", "model.seq_len=24", "optim.warmup_steps=2", "data.val_fraction=0.1"),
    *(
        "train.max_steps=8",
        "train.batch_size=4",
        "train.eval_every=4",
        "train.eval_tokens=500",
        "train.sample_tokens=2",
    ),
    *("train.checkpoint_every=1", "train.keep_last=99"),
)
COMPARED = ("model.safetensors", "optimizer.safetensors", "state.json")


def write_corpus(path: Path) -> Path:
    lines = [
        json.dumps({"id": f"poem-{i}", "text": " ".join(f"word{(i * 7 + j) % 23} and {j}" for j in range(40))})
        for i in range(40)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def make_config(corpus: Path, *sets: str, preset: str = "cola-fan-dropout-muon") -> RunConfig:
    return resolve(preset, smoke_run=True, data=str(corpus), sets=[*SETS, *sets]).config


class Killed(BaseException):
    """What stands for a kill: nothing catches it, and nothing behind it is saved."""


class On:
    """A sink that calls `act` with every record of a step."""

    def __init__(self, act: Callable[[StepRecord], object]) -> None:
        self._act = act

    def step(self, record: StepRecord) -> None:
        self._act(record)

    def evaluation(self, record: EvalRecord) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def kill_at(step: int) -> On:
    def act(record: StepRecord) -> None:
        if record.step == step:
            raise Killed

    return On(act)


def trainer(
    root: Path, config: RunConfig | None = None, *more: Sink, at: Path | None = None, sets: tuple[str, ...] = ()
) -> Trainer:
    """A new run of `config` in `root`; without one, the rest of the run there, from its newest checkpoint or `at`."""

    resumption = plan_resumption(at or root, lambda stored: override(stored, sets)) if config is None else None
    behind = resumption.totals.steps if resumption is not None else 0

    def sinks(folder: RunFolder) -> Sink:
        board = TensorBoardSink(folder.tensorboard, behind=behind, again=last_records(folder.metrics))
        return SinkSet([*more, JsonlSink(folder.metrics), board])

    if resumption is None:
        return Trainer(config, out=root, sinks=sinks)
    return Trainer(resumption.config, sinks=sinks, resume=resumption)


def run(root: Path, config: RunConfig | None = None, *more: Sink, **options: Any) -> RunSummary:
    return trainer(root, config, *more, **options).fit()


def end(root: Path) -> dict[str, bytes]:
    """The newest checkpoint, as far as it must be the same."""
    newest = Checkpoints(root / "checkpoints").newest()
    assert newest is not None
    return {"step": newest.name.encode(), **{name: (newest / name).read_bytes() for name in COMPARED}}


def records(root: Path) -> list[dict[str, Any]]:
    """What ``metrics.jsonl`` says, apart from times."""
    lines = (root / "metrics.jsonl").read_text("utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith(("_ms", "_s"))} for line in lines]


def evaluated(root: Path, sets: Sequence[str] = ()) -> EvalRecord:
    """What a saved run reaches on its held-out split, over the same tokens as the trainer's evaluations."""
    saved = open_saved(root)
    data = held_out_of(saved, sets)
    assert saved.steps is not None
    return HeldOut(Replica(saved.model), data, saved.machine, saved.config.train).evaluate(saved.steps)
