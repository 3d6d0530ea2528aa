"""What a terminal does to a command: it is closed, or Ctrl-C is typed."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train.tiny_runs import SETS, write_corpus

ROOT = Path(__file__).parents[2]
# As nohup does: without it the hangup ends the run, which then saves.
TRAIN = "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); from colakit.cli.app import main; main()"


@pytest.mark.parametrize(("is_terminal", "until"), [(True, b"step 12: validation loss"), (False, b"loss")])
def test_a_run_goes_on_when_nobody_reads_it(tmp_path: Path, is_terminal: bool, until: bytes) -> None:
    corpus = write_corpus(tmp_path / "poems.jsonl")
    sets = [word for each in (*SETS, "train.max_steps=12") for word in ("--set", each)]
    command = [sys.executable, "-c", TRAIN, "train", "--smoke", "--data", str(corpus), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLAKIT_CACHE": str(tmp_path / "cache")}
    ours, theirs = pty.openpty() if is_terminal else os.pipe()
    with subprocess.Popen(
        [*command, *sets],
        stdout=theirs,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        seen = b""
        while until not in seen:
            seen += os.read(ours, 4096)
        os.close(ours)
        assert process.poll() is None
    assert process.returncode == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 12


def test_ctrl_c_ends_the_proof_and_all_its_processes(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "poems.jsonl")
    sets = [word for each in (*SETS, "train.max_steps=2000", "train.checkpoint_every=none") for word in ("--set", each)]
    command = [sys.executable, "-m", "colakit", "train", "--smoke", "--data", str(corpus), "--verify-resume", *sets]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True, text=True
    ) as process:
        while not list(tmp_path.glob("colakit-verify-*/whole/config.json")):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said, _ = process.communicate(timeout=60)  # it ends when the last process has closed the pipe
    assert "Traceback" not in said
    assert process.returncode not in (0, 2)
    assert not list(tmp_path.glob("colakit-verify-*"))
