"""The proof of `--verify-resume` sees every difference there is, and its victim is really killed."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from colakit.errors import RunError
from colakit.train import verify
from tests.train.tiny_runs import COMPARED, make_config, run, write_corpus


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twice the same run."""
    root = tmp_path_factory.mktemp("runs")
    config = make_config(write_corpus(root / "poems.jsonl"), "train.max_steps=4")
    for name in ("one", "other"):
        run(root / name, config)
    return [root / "one", root / "other"]


def test_equal_runs_are_equal(runs: list[Path]) -> None:
    assert verify.compare(*runs, 4) == dict.fromkeys(("weights", "optimizer", "state", "losses"), True)


@pytest.mark.parametrize(("what", "name"), list(zip(("weights", "optimizer", "state"), COMPARED, strict=True)))
def test_one_byte_of_a_file_is_a_difference(runs: list[Path], what: str, name: str) -> None:
    path = runs[1] / "checkpoints" / "step-00000004" / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert [key for key, is_equal in verify.compare(*runs, 4).items() if not is_equal] == [what]
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["loss", "grad_norm", "step"])
def test_a_record_that_differs_is_a_difference(runs: list[Path], name: str) -> None:
    path = runs[1] / "metrics.jsonl"
    content = path.read_text()
    first, rest = content.split("\n", 1)
    path.write_text(first.replace(f'"{name}": ', f'"{name}": 1') + "\n" + rest)
    try:
        assert [key for key, is_equal in verify.compare(*runs, 4).items() if not is_equal] == ["losses"]
    finally:
        path.write_text(content)


class Child:
    """A process as `multiprocessing` has one."""

    def __init__(self, seconds: float, code: int = 0) -> None:
        script = f"import sys, time; time.sleep({seconds}); sys.exit({code})"
        self._process = subprocess.Popen([sys.executable, "-c", script])

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()

    def join(self) -> None:
        self._process.wait()

    @property
    def exitcode(self) -> int | None:
        return self._process.returncode


def test_a_process_that_failed_is_told(tmp_path: Path) -> None:
    failing = Child(0.0, code=3)
    with pytest.raises(RunError, match=r"failed \(exit code 3\); what it said is above"):
        verify._kill_after(failing, tmp_path / "run", 3)  # type: ignore[arg-type]  # of the same methods


def test_a_user_s_mistake_in_a_process_is_one_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A budget that a process of the proof is past already, before its first step."""
    config = make_config(write_corpus(tmp_path / "poems.jsonl"), "train.memory_gib=0.001")
    with pytest.raises(RunError, match=r"(?s)ended early\. .*train\.memory_gib = 0\.001: this process"):
        verify.verify_resume(config)
    assert "Traceback" not in capfd.readouterr().err


def test_the_victim_is_killed_after_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000003").mkdir(parents=True)
    victim: Any = Child(60.0)
    started = time.perf_counter()
    verify._kill_after(victim, tmp_path, 3)
    assert victim.exitcode == -signal.SIGKILL
    assert time.perf_counter() - started < 30.0
    with pytest.raises(RunError, match="nothing to compare: no checkpoint was taken, since every update was left out"):
        verify._kill_after(Child(0.0), tmp_path, 6)  # type: ignore[arg-type]  # of the same methods
