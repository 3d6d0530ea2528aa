"""``kill -9`` at random moments, many of them inside a save: what is left always resumes to the undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from colakit.checkpoint.folders import Checkpoints
from tests.train.tiny_runs import end, make_config, records, run, write_corpus

ROOT = Path(__file__).parents[2]
STEPS = 12
# A save at every step, and a slow one: half of the time is spent inside.
CHILD = """
import sys
import time
from pathlib import Path
from colakit.checkpoint import folders
from tests.train.tiny_runs import make_config, run
root, corpus, steps = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
honest = folders._sync
def slow(path):
    time.sleep(0.002)
    honest(path)
folders._sync = slow
print("ready", flush=True)
run(root, None if (root / "checkpoints").is_dir() else make_config(corpus, f"train.max_steps={steps}"))
print("done", flush=True)
"""


def child(root: Path, corpus: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(root), str(corpus), str(STEPS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill_repeatedly(folder: Path, n_kills: int, seed: int) -> int:
    """Kill, resume and compare until it was done so often; → how many of the kills were inside a save."""
    corpus = write_corpus(folder / "poems.jsonl")
    expected = folder / "whole"
    run(expected, make_config(corpus, f"train.max_steps={STEPS}"))
    moments = random.Random(seed)
    n_killed = n_inside = number = 0
    while n_killed < n_kills:
        root = folder / f"run-{number}"
        number += 1
        while True:
            there = set((root / "checkpoints").glob("step-*"))
            process = child(root, corpus)
            # Behind the first checkpoint, so that there is something to go on from; and mostly not before the next.
            waits = not there or moments.random() < 0.8
            while waits and process.poll() is None and there >= set((root / "checkpoints").glob("step-*")):
                time.sleep(0.001)
            time.sleep(moments.random() * 0.6)
            process.kill()
            process.communicate()
            assert process.returncode in (0, -signal.SIGKILL), "it may be killed, but not fail"
            n_killed += process.returncode != 0
            n_inside += bool(list((root / "checkpoints").glob(".step-*")))
            is_finished = (root / "summary.json").is_file()  # and may have been killed behind it
            if is_finished or n_killed >= n_kills:
                break
        None if is_finished else run(root)
        assert end(root) == end(expected)
        assert records(root) == records(expected)
        assert not list(Checkpoints(root / "checkpoints").folder.glob(".*"))
    return n_inside


def test_killed_at_random_moments_it_ends_as_if_undisturbed(tmp_path: Path) -> None:
    kill_repeatedly(tmp_path, 5, seed=1)


@pytest.mark.slow
def test_killed_at_two_hundred_moments(tmp_path: Path) -> None:
    assert kill_repeatedly(tmp_path, 200, seed=2) >= 20, "many of them inside a save"
