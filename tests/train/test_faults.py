"""What fails half way, as on a full disk: no step without its record, and nothing that is saved is harmed."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from colakit.checkpoint.folders import Checkpoints, verify
from colakit.data.loader import Batch
from colakit.errors import RunError
from colakit.optim.combined import CombinedOptimizer
from colakit.records.run import StepRecord
from colakit.train.lock import RunLock
from colakit.train.sinks import JsonlSink
from colakit.train.step import TrainStep
from tests.train.tiny_runs import Killed, end, kill_at, make_config, records, run, trainer, write_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "poems.jsonl")


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from colakit.errors import RunError
from tests.train.tiny_runs import On, make_config, run, write_corpus
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
config = make_config(write_corpus(folder / "poems.jsonl"))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
fill = lambda record: record.step == 5 and resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    run(folder / "run", config, On(fill))
except RunError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    print(error)
"""


@pytest.mark.parametrize("limit", [2_000, 100_000])
def test_a_full_disk_during_a_save_leaves_the_older_checkpoints(tmp_path: Path, limit: int) -> None:
    """The limit cuts the records or the tensors short."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(limit)]
    outcome = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    pattern = rf"{tmp_path}/run.* cannot be read or written: .*Free some space there\. `colakit .* after step 4\."
    assert re.search(pattern, outcome.stdout), (outcome.stdout, outcome.stderr[-2000:])
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in checkpoints.all()] == [f"step-0000000{step}" for step in (1, 2, 3, 4)]
    for path in checkpoints.all():
        verify(path)
    assert not list(checkpoints.folder.glob(".*")), "nothing half-written takes the room"
    assert run(tmp_path / "run").steps == 8
    whole = run(tmp_path / "whole", make_config(tmp_path / "poems.jsonl"))
    assert end(tmp_path / "run") == end(tmp_path / "whole")
    assert whole.steps == 8


def test_an_update_that_fails_half_way_is_not_saved(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some weights are of the next step by then."""
    honest, made = CombinedOptimizer.step, iter(range(99))

    def step(self: CombinedOptimizer) -> None:
        if next(made) == 4:
            next(iter(self.parts.values())).step()
            raise MemoryError
        honest(self)

    monkeypatch.setattr(CombinedOptimizer, "step", step)
    sets = ("train.checkpoint_every=none", "train.eval_every=3")
    with pytest.raises(RunError, match=r"Out of memory at step 5, .* goes on after step 3\."):
        run(tmp_path / "run", make_config(corpus, *sets))
    monkeypatch.setattr(CombinedOptimizer, "step", honest)
    run(tmp_path / "run")
    run(tmp_path / "whole", make_config(corpus, *sets))
    assert end(tmp_path / "run") == end(tmp_path / "whole")


def test_a_step_without_its_record_is_never_saved(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when step 5 is recorded, and has room again when the run is rescued."""
    honest = JsonlSink.step

    def refuse(self: JsonlSink, record: StepRecord) -> None:
        if record.step == 5:
            raise OSError(28, "No space left on device")
        honest(self, record)

    monkeypatch.setattr(JsonlSink, "step", refuse)
    with pytest.raises(RunError, match="No space left on device"):
        run(tmp_path / "run", make_config(corpus, "train.checkpoint_every=none", "train.eval_every=3"))
    assert [path.name for path in Checkpoints(tmp_path / "run" / "checkpoints").all()] == ["step-00000003"]
    monkeypatch.setattr(JsonlSink, "step", honest)
    run(tmp_path / "run")
    run(tmp_path / "whole", make_config(corpus, "train.checkpoint_every=none", "train.eval_every=3"))
    assert records(tmp_path / "run") == records(tmp_path / "whole")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_when_a_run_is_resumed_is_one_error_and_harms_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    run(tmp_path / "whole", make_config(corpus))
    with pytest.raises(Killed):
        run(tmp_path / "run", make_config(corpus), kill_at(5))

    def refuse(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, refuse)
        with pytest.raises(RunError, match=r"cannot be read or written: No space left on device\. Free some space"):
            run(tmp_path / "run")
    assert not RunLock(tmp_path / "run").is_held()
    run(tmp_path / "run")
    assert end(tmp_path / "run") == end(tmp_path / "whole")
    assert records(tmp_path / "run") == records(tmp_path / "whole")


def test_guard_and_generators_stand_where_the_step_that_failed_found_them(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is judged, and the look for what was wrong runs out of memory."""
    sets = ("train.checkpoint_every=none", "train.eval_every=99", "train.skip_spikes=9.0")
    spoiled = trainer(tmp_path / "run", make_config(corpus, *sets))
    honest = TrainStep.accumulate

    def accumulate(
        step: TrainStep, batches: Sequence[Batch], tokens: int, **_: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        nll, correct = honest(step, batches, tokens)
        return nll * (math.nan if spoiled.totals.steps == 4 else 1.0), correct

    def run_out(*_: object) -> str:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "accumulate", accumulate)
        patch.setattr("colakit.train.trainer.first_bad_layer", run_out)
        with pytest.raises(RunError, match="goes on after step 4"):
            spoiled.fit()
    guard = json.loads(end(tmp_path / "run")["state.json"])["guard"]
    assert (guard["in_a_row"], len(guard["losses"])) == (0, 4)
    run(tmp_path / "run")
    run(tmp_path / "whole", make_config(corpus, *sets))
    assert end(tmp_path / "run") == end(tmp_path / "whole")
