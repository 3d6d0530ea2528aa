"""A run whose terminal is closed, or whose output nobody reads any more, goes on to its end."""

import json
import os
import pty
import subprocess
import sys
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
