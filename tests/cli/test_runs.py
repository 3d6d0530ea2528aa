"""`colakit runs`, `train --resume` and `train --verify-resume`, as a user types them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colakit.checkpoint.folders import Checkpoints
from colakit.records.run import ResumeProof
from colakit.train.lock import RunLock
from colakit.train.trainer import Trainer
from tests.train.tiny_runs import SETS, write_corpus

Run = Callable[..., Any]  # Any: conftest's Outcome, which cannot be imported from here


@pytest.fixture
def train(colakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`colakit train` on a tiny corpus, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    corpus = write_corpus(tmp_path / "poems.jsonl")
    sets = [word for each in SETS for word in ("--set", each)]

    def run(*args: str) -> Any:
        return colakit("train", "--smoke", "--data", str(corpus), *sets, *args)

    return run


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Stop the run after step `at`, as a signal does."""
    honest = Trainer._record

    def record(self: Trainer, step: int, *args: Any, **options: Any) -> None:
        honest(self, step, *args, **options)
        if step == at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Trainer, "_record", record)


def test_runs_are_listed_with_the_command_that_goes_on(
    train: Run, colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert colakit("runs").code == 2
    assert train("--out", "runs/whole").code == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        outcome = train("--out", "runs/cut", "--preset", "cola-m")
    assert outcome.code == 2
    assert "`colakit train --resume runs/cut` goes on after step 5." in " ".join(outcome.err.split())
    Path("runs/other").mkdir()
    Path("runs/other/config.json").write_text("[]")
    listing = json.loads(colakit("runs", "--json").out)["runs"]
    found = [(r["folder"], r["preset"], r["steps"], r["max_steps"], r["state"], r["resume"]) for r in listing]
    assert found == [
        ("runs/whole", "cola-fan-muon", 8, 8, "finished", None),
        ("runs/cut", "cola-m", 5, 8, "interrupted", "colakit train --resume runs/cut"),
    ]
    lines = Path("runs/cut/metrics.jsonl").read_text().splitlines()
    assert listing[1]["last_loss"] == json.loads(lines[-1])["loss"]
    table = colakit("runs").out
    assert re.search(r"runs/cut +cola-m +5 +8 +\d\.\d{4} +interrupted +colakit train --resume runs/cut", table)
    Path("runs/cut/config.json").write_text("{")
    Path("runs/whole/config.json").unlink()
    assert sorted(json.loads(colakit("runs", "--json").out)["runs"], key=str) == sorted(listing, key=str)
    Path("runs/latest").symlink_to("cut")
    assert len(json.loads(colakit("runs", "--json").out)["runs"]) == 2, "a link is no run of its own"
    assert json.loads(colakit("runs", "runs/cut/checkpoints", "--json").out)["runs"] == [], "nor is a checkpoint"
    lock = RunLock(Path("runs/cut"))
    lock.acquire()
    assert json.loads(colakit("runs", "runs/cut", "--json").out)["runs"][0]["state"] == "running"
    lock.release()


def test_a_run_is_resumed_by_its_folder_or_a_checkpoint(
    train: Run, colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = json.loads(train("--out", "whole", "--json").out)
    for name, at in (("one", "one"), ("two", "two/checkpoints/step-00000003")):
        with monkeypatch.context() as patch:
            interrupt(patch, 5)
            train("--out", name)
        outcome = colakit("train", "--resume", at, "--json")
        assert outcome.code == 0, outcome.err
        found = json.loads(outcome.out)
        for key in ("steps", "last_loss", "val_loss", "tokens_seen", "sample"):
            assert found[key] == expected[key], key
        newest = Checkpoints(Path(name) / "checkpoints").newest()
        assert newest is not None
        assert (newest / "state.json").read_bytes() == Path("whole/checkpoints/step-00000008/state.json").read_bytes()


def test_a_checkpoint_is_resumed_in_its_own_folder_wherever_one_stands(
    train: Run, colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        train("--out", "run")
    root = Path("run").absolute()
    monkeypatch.chdir("run/checkpoints")
    assert colakit("train", "--resume", "step-00000003").code == 0
    assert (root / "summary.json").is_file()
    assert not (root / "checkpoints" / "checkpoints").exists()


def test_what_has_no_checkpoint_yet_is_listed_without_a_command(train: Run, colakit: Run) -> None:
    assert train("--out", "runs/mine").code == 0
    shutil.rmtree("runs/mine/checkpoints")
    Path("runs/mine/metrics.jsonl").unlink()
    Path("runs/mine/metrics.jsonl").mkdir()
    (listing,) = json.loads(colakit("runs", "--json").out)["runs"]
    assert (listing["steps"], listing["state"], listing["resume"]) == (0, "interrupted", None)
    outcome = train("--out", "runs/mine")
    assert outcome.code == 2
    assert "--resume" not in outcome.err, "there is nothing to go on from"


def test_a_run_at_its_last_step_without_a_summary_is_not_finished(train: Run, colakit: Run) -> None:
    assert train("--out", "runs/a b").code == 0
    Path("runs/a b/summary.json").unlink()
    (listing,) = json.loads(colakit("runs", "--json").out)["runs"]
    assert (listing["steps"], listing["state"]) == (8, "interrupted")
    assert listing["resume"] == "colakit train --resume 'runs/a b'"
    assert colakit("train", "--resume", "runs/a b").code == 0
    (listing,) = json.loads(colakit("runs", "--json").out)["runs"]
    assert listing["state"] == "finished"


def test_a_checkpoint_is_known_by_links_and_from_inside(
    train: Run, colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        train("--out", "step-00000100")
    Path("latest").symlink_to("step-00000100/checkpoints/step-00000004")
    root = Path("step-00000100").absolute()
    shutil.copytree("step-00000100/checkpoints/step-00000004", "abandoned-step-00000004")
    outcome = colakit("train", "--resume", "abandoned-step-00000004")
    assert outcome.code == 2
    assert "is a checkpoint without its name or its run." in " ".join(outcome.err.split())
    assert not (Path("abandoned-step-00000004") / ".lock").exists()
    assert colakit("train", "--resume", "latest").code == 0
    monkeypatch.chdir(root / "checkpoints" / "step-00000003")
    assert colakit("train", "--resume", ".").code == 0
    monkeypatch.chdir(root.parent)
    assert "is finished, at step 8" in colakit("train", "--resume", "step-00000100").err


def test_faults_of_resuming_are_one_message(train: Run, colakit: Run) -> None:
    assert train("--out", "run").code == 0
    for args, message in (
        (("--resume", "nowhere"), "no run folder"),
        (("--resume", "run", "--out", "other"), "has its own configuration and folder. Leave out --out;"),
        (("--resume", "run", "--preset", "cola", "--smoke"), "Leave out --preset, --smoke; --set changes"),
        (("--resume", "run"), "is finished, at step 8."),
        (("--resume", "run", "--verify-resume"), "Leave --resume and --out out."),
        (
            ("--resume", "run", "--set", "optim.lr=1.0"),
            "optim.lr = 1.0: the run has 0.008, and this makes it",
        ),
        (("--resume", "run", "--set", "train.max_step=9"), "Did you mean train.max_steps?"),
        (("--resume", "run/checkpoints/step-00000099"), "no such checkpoint. There are: step-00000001,"),
    ):
        outcome = colakit("train", *args)
        assert outcome.code == 2
        assert message in " ".join(outcome.err.split()), outcome.err
        assert outcome.out == ""
    outcome = train("--out", "run")
    assert outcome.code == 2
    assert "To go on with that run: `colakit train --resume run`." in " ".join(outcome.err.split())


def test_resuming_is_proved_on_the_users_own_configuration(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = train("--verify-resume", "--preset", "cola-fan-dropout-muon", "--json")
    assert outcome.code == 0, outcome.err
    proof = json.loads(outcome.out)
    assert (proof["killed_after"], proof["steps"]) == (3, 6)
    assert all(proof[name] is True for name in ("weights", "optimizer", "state", "losses"))
    assert not Path("runs").exists()
    assert "Stopping after this step" not in outcome.err
    outcome = train("--verify-resume", "--set", "train.max_steps=1", "--set", "optim.warmup_steps=0")
    assert outcome.code == 2
    assert "cannot be resumed" in outcome.err
    wrong = ResumeProof(**{k: v for k, v in proof.items() if k not in ("schema", "kind")} | {"state": False})
    monkeypatch.setattr("colakit.train.verify.verify_resume", lambda _: wrong)
    outcome = train("--verify-resume")
    assert outcome.code == 1
    assert re.search("generators, data position +DIFFERENT", outcome.out)
    assert re.search("optimizer state +equal, byte for byte", outcome.out)
    assert "Resuming is NOT exact here" in outcome.out
