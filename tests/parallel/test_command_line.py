"""``colakit train`` in several processes: what a run leaves, what ends one of them ends it, and how it goes on."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from colakit.checkpoint.folders import Checkpoints
from colakit.errors import CheckpointError
from colakit.train.listing import list_runs
from colakit.train.resume import check_whole
from tests.parallel.jobs import Job, until
from tests.parallel.runs import STRATEGIES, slow
from tests.train.tiny_runs import SETS, records, write_corpus

STEPS = 8
_SETS = (*SETS, "train.batch_size=12", "train.micro_batch_size=2", "train.device=cpu")


def training(strategy: str, out: str, *sets: str, preset: str = "cola-fan-dropout-muon") -> list[str]:
    """The arguments of a run of eight steps, each with a checkpoint, evaluated twice."""
    all_sets = (*_SETS, *([f"parallel.strategy={strategy}"] if strategy else []), *sets)
    words = [word for item in all_sets for word in ("--set", item)]
    return ["train", "--preset", preset, "--smoke", "--data", "poems.jsonl", *words, "--out", out]


def colakit(cwd: Path, *arguments: str, size: int = 1) -> tuple[str, str]:
    """What the main process prints and tells of a command that succeeds."""
    with Job(size, *arguments, cwd=cwd) as job:
        assert job.wait() == [0] * size, job.err(0)
        assert all((job.out(rank), job.err(rank)) == ("", "") for rank in range(1, size))
        return job.out(0), job.err(0)


_NAMELESS = """
import socket
socket.getfqdn = lambda name="": "no-such-machine.invalid"
from colakit.cli.app import main
main()
"""


def launch(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    """``colakit … --nproc 2``, as one types it, on a machine whose name has no address."""
    command = [sys.executable, "-c", _NAMELESS, *arguments, "--nproc", "2"]
    return subprocess.Popen(
        command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def rank_of(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    """Which of the processes that a launcher has started is this one."""
    return next(p for p in psutil.Process(launcher.pid).children() if p.environ().get("RANK") == str(rank))


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A folder with a text."""
    write_corpus(tmp_path / "poems.jsonl")
    return tmp_path


class Undisturbed:
    """Runs that nobody ends, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_corpus(folder / "poems.jsonl")
        self._told: dict[str, tuple[str, str]] = {}

    def of(self, strategy: str, size: int = 2, *sets: str, preset: str = "cola-fan-dropout-muon") -> Path:
        name = "-".join((preset, strategy, str(size), *sets)).replace("=", "-")
        if name not in self._told:
            self._told[name] = colakit(self.folder, *training(strategy, name, *sets, preset=preset), size=size)
        return self.folder / name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"))


CHANGING = ("totals.json", "environment.json", "manifest.json", "config.json")
"""Files of a checkpoint that hold times, hashes, and where the text lies."""


def same_end(root: Path, expected: Path) -> None:
    """Weights, optimizer, generators, data position and records, to the bit."""
    assert (root / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert records(root) == records(expected)
    ours, theirs = ({p.relative_to(f): p for p in f.rglob("*") if p.is_file()} for f in map(newest, (root, expected)))
    assert ours.keys() == theirs.keys()
    for name, path in ours.items():
        if path.suffix == ".safetensors":
            check_same_tensors(path, theirs[name])
        elif name.name not in CHANGING:
            assert path.read_bytes() == theirs[name].read_bytes(), name


def check_same_tensors(path: Path, other: Path) -> None:
    """And what is told beside them, which safetensors writes in any order."""
    with safe_open(path, "np") as ours, safe_open(other, "np") as theirs:
        assert ours.metadata() == theirs.metadata()
        assert ours.keys() == theirs.keys()
        for name in ours.keys():  # noqa: SIM118  (no dict)
            assert ours.get_tensor(name).tobytes() == theirs.get_tensor(name).tobytes(), name


def newest(root: Path) -> Path:
    """The last checkpoint."""
    found = Checkpoints(root / "checkpoints").newest()
    assert found is not None
    return found


def steps_of(root: Path, kind: str = "step") -> list[int]:
    return [record["step"] for record in records(root) if record["kind"] == kind]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_shared_run_leaves_what_one_process_leaves(undisturbed: Undisturbed, strategy: str) -> None:
    """Tensors of the same names and shapes, of nearly the same values; each step once; and whatever reads it."""
    preset = "cola-fan-muon"
    root, alone = undisturbed.of(strategy, preset=preset), undisturbed.of("", 1, preset=preset)
    assert {p.name for p in root.iterdir()} == {p.name for p in alone.iterdir()}
    mine, theirs = load_file(root / "model.safetensors"), load_file(alone / "model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in mine.items()} == {n: (t.shape, t.dtype) for n, t in theirs.items()}
    for name, tensor in theirs.items():
        assert float((mine[name] - tensor).norm()) <= 1e-3 * float(tensor.norm()), name
    assert steps_of(root) == list(range(1, STEPS + 1))
    assert steps_of(root, "eval") == [4, 8]
    for found, expected in zip(records(root), records(alone), strict=True):
        for name in found.keys() & {"loss", "grad_norm", "val_loss", "bits_per_byte", "tokens", "accuracy"}:
            assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    summary = json.loads((root / "summary.json").read_text())
    assert (summary["steps"], summary["interrupted"], summary["nan_count"]) == (STEPS, False, 0)
    assert (summary["processes"], summary["strategy"]) == (2, strategy)
    (listing,) = list_runs(root)
    assert (listing.state, listing.steps) == ("finished", STEPS)


@pytest.mark.parametrize("strategy", ["zero1", "fsdp2"])
def test_what_it_leaves_is_opened_as_any_other(undisturbed: Undisturbed, strategy: str) -> None:
    """The run, and a checkpoint of it that is divided."""
    root = undisturbed.of(strategy, preset="cola-fan-muon")
    summary = json.loads((root / "summary.json").read_text())
    for path in (root, root / "checkpoints" / f"step-{STEPS:08}"):
        out, _ = colakit(root.parent, "eval", str(path), "--json")
        assert json.loads(out)["scores"]["loss"]["value"] == pytest.approx(summary["val_loss"], rel=1e-6)
        out, _ = colakit(root.parent, "info", str(path), "--json")
        told: dict[str, Any] = json.loads(out)
        assert told["parameters"] == summary["parameters"]


@pytest.mark.parametrize("strategy", [slow("ddp"), slow("zero1"), "fsdp2"])
def test_ended_at_a_random_moment_it_comes_to_the_undisturbed_run(
    there: Path, undisturbed: Undisturbed, strategy: str
) -> None:
    kill_and_resume(there, undisturbed.of(strategy), strategy, random.Random(strategy))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_at_another_moment_too(there: Path, undisturbed: Undisturbed, strategy: str) -> None:
    kill_and_resume(there, undisturbed.of(strategy), strategy, random.Random(f"{strategy} again"))


def kill_and_resume(there: Path, expected: Path, strategy: str, moments: random.Random) -> None:
    """Behind the first checkpoint, in a step or in a save, one process is killed; a launcher ends the others."""
    run, codes = there / "run", [0, 0]
    while codes == [0, 0]:  # until a moment comes before its end
        shutil.rmtree(run, ignore_errors=True)
        killed = moments.randrange(2)
        with Job(2, *training(strategy, "run"), cwd=there) as job:
            until(lambda: list((run / "checkpoints").glob("step-*")), "a checkpoint")
            time.sleep(moments.random())
            job.send(killed, signal.SIGKILL)
            job.processes[killed].join()
            job.send(1 - killed, signal.SIGTERM)
            codes = job.wait()
            assert codes[killed] in (0, -signal.SIGKILL)
            assert codes[1 - killed] in (0, 2, -signal.SIGTERM), job.err(1 - killed)
    colakit(there, "train", "--resume", "run", size=2)
    same_end(run, expected)
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.parametrize("killed", [2, slow(0)])
def test_of_several_only_who_has_ended_is_said_to_have_and_once(there: Path, killed: int) -> None:
    """Gloo tells only those that are next to it: the others find out when these end."""
    with Job(4, *training("ddp", "run", "train.max_steps=5000", "train.micro_batch_size=3"), cwd=there) as job:
        until(lambda: list((there / "run" / "checkpoints").glob("step-*")), "a checkpoint")
        job.send(killed, signal.SIGKILL)
        assert job.wait() == [-signal.SIGKILL if rank == killed else 2 for rank in range(4)]
        said = "".join(job.err(rank) for rank in range(4))
    assert said.count("Error: ") == said.count(f"process {killed} ended, and no other can go on.") == 1
    assert "Traceback" not in said


def test_a_process_that_is_killed_ends_the_job_by_name_and_it_goes_on(there: Path, undisturbed: Undisturbed) -> None:
    """Of the launcher's: what it says, and its exit code."""
    launcher = launch(there, *training("fsdp2", "run", "train.max_steps=8"))
    until(lambda: list((there / "run" / "checkpoints").glob("step-*")), "a checkpoint")
    rank_of(launcher, 1).kill()
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGKILL
    assert "Process 1 was ended by SIGKILL" in err
    assert "Stopping after this step" not in err, "nothing is saved or evaluated for the launcher's signal"
    assert "Traceback" not in err
    assert "Process 0" not in err
    resumed, _ = colakit(there, "train", "--resume", "run", size=2)
    assert "validation loss" in resumed
    same_end(there / "run", undisturbed.of("fsdp2"))


def test_a_signal_to_the_launcher_ends_the_run_behind_its_step(
    there: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(temporary))
    launcher = launch(there, *training("zero1", "run", "train.max_steps=5000", "train.checkpoint_every=none"))
    metrics = there / "run" / "metrics.jsonl"
    until(lambda: metrics.is_file() and metrics.read_text().count("\n") > 2, "some steps")
    launcher.send_signal(signal.SIGTERM)
    out, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, err
    summary = json.loads((there / "run" / "summary.json").read_text())
    assert summary["interrupted"]
    assert steps_of(there / "run") == list(range(1, summary["steps"] + 1))
    assert newest(there / "run").name == f"step-{summary['steps']:08}"
    assert (there / "run" / "model.safetensors").is_file()
    assert out.count("`colakit train --resume run --nproc 2` goes on.") == 1
    assert err.count("Stopping after this step: saving, evaluating.") == 1
    assert list(temporary.glob("*nproc*")) == list(temporary.glob("torchelastic*")) == []
    (listing,) = list_runs(there / "run")
    assert listing.resume == f"colakit train --resume {there / 'run'} --nproc 2"


@pytest.mark.parametrize("only", [0, 1])
def test_a_signal_to_one_of_them_ends_all_behind_the_same_step(there: Path, only: int) -> None:
    """In the midst of a save, which all go through; as a machine that is taken away may send it."""
    with Job(2, *training("fsdp2", "run", "train.max_steps=5000", "train.keep_last=1"), cwd=there) as job:
        until(lambda: list((there / "run" / "checkpoints").glob(".step-*3")), "a save")
        job.send(only, signal.SIGTERM)
        assert job.wait() == [0, 0], job.err(0)
    summary = json.loads((there / "run" / "summary.json").read_text())
    assert summary["interrupted"]
    assert steps_of(there / "run") == list(range(1, summary["steps"] + 1))
    assert newest(there / "run").name == f"step-{summary['steps']:08}"


@pytest.mark.slow
def test_a_launcher_that_is_killed_takes_the_others_with_it(there: Path) -> None:
    """Which say so, once, where they next speak to it."""
    launcher = launch(there, *training("zero1", "run", "train.max_steps=5000"))
    until(lambda: list((there / "run" / "checkpoints").glob("step-*")), "a checkpoint")
    launcher.kill()
    _, err = launcher.communicate(timeout=60)
    assert err.count("Error: ") == err.count("The launcher has ended, and its processes cannot go on without.") == 1
    assert "`colakit train --resume run --nproc 2` goes on after step" in err
    assert "frame #" not in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_mistake_is_said_once_and_leaves_no_folder(there: Path) -> None:
    """That the processes find, not the launcher."""
    (there / "poems.jsonl").unlink()
    launcher = launch(there, *training("ddp", "run"))
    out, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 2, err
    assert err.count("poems.jsonl") == 1
    assert "Traceback" not in err
    assert out == ""
    assert list(there.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--resume", "nowhere"], "nowhere: no run folder"),
        (["train", "--resume", "run", "--set", "model.d_ff=50"], "model.d_ff"),
        (["train", "--resume", "run", "--set", "train.max_steps=3"], "train.max_steps"),
        (["train", "--resume", "run"], "is finished"),
        (["train", "--smoke", "--preset", "cola-fann"], "Did you mean cola-fan"),
        (["train", "--smoke", "--set", "train.batch_size=9"], "divisible by the number of processes (2)"),
        (["train", "--smoke", "--nproc", "4"], "a launcher has started 2 processes"),
        (["train", "--smoke", "--verify-resume"], "--verify-resume proves it of one process"),
        (["train", "--smoke", "--out", "run"], "To go on with that run: `colakit train --resume run --nproc 2`."),
    ],
)
def test_a_mistake_under_torchrun_is_said_by_the_main_process(
    undisturbed: Undisturbed, there: Path, arguments: list[str], message: str
) -> None:
    """And all end with the same code."""
    shutil.copytree(undisturbed.of("ddp"), there / "run")
    before = sorted(path.name for path in there.iterdir())
    with Job(2, *arguments, cwd=there) as job:
        assert job.wait() == [2, 2], job.err(0)
        assert message in job.err(0)
        assert "Traceback" not in job.err(0)
        assert (job.out(0), job.out(1), job.err(1)) == ("", "", "")
    assert [name for name in sorted(p.name for p in there.iterdir()) if not name.startswith("output-")] == before


def test_advice_behind_a_damaged_checkpoint_keeps_the_number_of_processes(
    undisturbed: Undisturbed, there: Path
) -> None:
    run = shutil.copytree(undisturbed.of("zero1"), there / "run")
    (newest(run) / "model.safetensors").unlink()
    before = run / "checkpoints" / f"step-{STEPS - 1:08}"
    with pytest.raises(CheckpointError, match=f"`colakit train --resume {before} --nproc 2`"):
        check_whole(newest(run))


def test_other_data_than_before_is_said_once(undisturbed: Undisturbed, there: Path) -> None:
    shutil.copytree(undisturbed.of("ddp"), there / "run")
    text = there / "poems.jsonl"
    text.write_text(text.read_text("utf-8").replace("word3 ", "word4 "), "utf-8")
    arguments = ("train", "--resume", "run/checkpoints/step-00000004", "--set", "data.path=poems.jsonl")
    with Job(2, *arguments, cwd=there) as job:
        assert job.wait() == [2, 2], job.err(0)
        assert job.err(0).count("the data has changed since this run") == 1
        assert (job.out(0), job.out(1), job.err(1)) == ("", "", "")


def test_without_a_launcher_too_a_mistake_is_said_once(there: Path) -> None:
    """By variables set by hand, where the store of the processes ends with the main one."""
    with Job(2, "train", "--resume", "nowhere", cwd=there, by_hand=True) as job:
        assert job.wait() == [2, 2], job.err(1)
        assert job.err(0).count("nowhere: no run folder") == 1
        assert "Traceback" not in job.err(1)


@pytest.mark.parametrize(
    ("strategy", "size", "after"), [slow("fsdp2", 3, "fsdp2"), ("zero1", 1, "zero1"), slow("fsdp2", 2, "zero1")]
)
def test_another_number_of_processes_goes_on(
    undisturbed: Undisturbed, there: Path, strategy: str, size: int, after: str
) -> None:
    """Not to the same bits, and says so; without dropout, to nearly the same weights."""
    expected = undisturbed.of(strategy, preset="cola-fan-muon")
    run = shutil.copytree(expected, there / "run")
    sets = ["--set", f"parallel.strategy={after}"] if after != strategy else []
    _, err = colakit(there, "train", "--resume", "run/checkpoints/step-00000004", *sets, size=size)
    if size != 2:
        assert f"processes: 2 before, {size} here. The run goes on, but not to the same bits." in err
    if sets:
        assert f"strategy: {strategy} before, {after} here." in err
    mine, theirs = load_file(run / "model.safetensors"), load_file(expected / "model.safetensors")
    for name, tensor in theirs.items():
        assert float((mine[name] - tensor).norm()) <= 1e-3 * float(tensor.norm()), name
    assert steps_of(run) == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_process_that_hangs_is_named(there: Path) -> None:
    launcher = launch(there, *training("ddp", "run", "train.max_steps=5000", "parallel.timeout_s=3"))
    metrics = there / "run" / "metrics.jsonl"
    until(lambda: metrics.is_file() and metrics.read_text().count("\n") > 2, "some steps")
    stopped = rank_of(launcher, 1)
    stopped.suspend()
    # The launcher asks it to end when the other has, and would wait for it, half a minute.
    until(lambda: is_asked_to_end(stopped), "the other to give up")
    stopped.kill()
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 2
    assert "Error: process 1 did not answer within 3 s (parallel.timeout_s); process 0 waited." in err
    assert "`colakit train --resume run --nproc 2` goes on after step" in err
    assert "Traceback" not in err


def is_asked_to_end(process: psutil.Process) -> bool:
    """Whether a SIGTERM waits for a process that is stopped, as Linux tells it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (pending,) = (line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd"))
    return bool(int(pending, 16) & 1 << (signal.SIGTERM - 1))
