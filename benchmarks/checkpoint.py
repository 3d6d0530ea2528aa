"""What a checkpoint costs training, and how soon a resumed run is at its first step.

    python benchmarks/checkpoint.py [--preset cola-fan] [--repeats 5]

Prints JSON. `blocked_s` is how long training waits for one checkpoint of the whole model and its optimizer's state;
`safetensors_s` is writing the same tensors with safetensors alone and syncing the files. Both are interleaved, medians.
The first steps are those of a run at smoke size in fresh processes, new and resumed, its data prepared.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file

from colakit.build import build_model, build_optimizer, pick_machine
from colakit.checkpoint.folders import Checkpoints
from colakit.checkpoint.model_file import model_tensors, optimizer_tensors
from colakit.config.load import resolve
from colakit.config.schema import RunConfig
from colakit.train.saver import Saver

SMOKE = ("--smoke", "--set", "train.checkpoint_every=3", "--set", "train.eval_every=1000")


def time_saves(config: RunConfig, repeats: int, folder: Path) -> tuple[list[float], list[float], int]:
    """Seconds that training waits, seconds of the bare library, and the bytes of the tensors."""
    machine = pick_machine(config)
    model = build_model(config, machine)
    optimizer = build_optimizer(model, config.optim)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    optimizer.zero_grad()
    tensors = {"model": model_tensors(model), "optimizer": optimizer_tensors(optimizer)}
    n_bytes = sum(t.nbytes for each in tensors.values() for t in each.values())
    saver = Saver(Checkpoints(folder / "checkpoints"), keep_last=1, keep_every=None)
    blocked, bare = [], []
    for step in range(repeats):
        started = time.perf_counter()
        for name, each in tensors.items():
            path = folder / f"{name}.safetensors"
            save_file(each, path)
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        bare.append(time.perf_counter() - started)
        started = time.perf_counter()
        saver.save(step, model, optimizer, {}, best_step=None)
        blocked.append(time.perf_counter() - started)
        saver.wait()
    saver.close()
    return blocked, bare, n_bytes


def first_step_s(*args: str) -> float:
    """Seconds from the start of a process that trains to its first step's line."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "colakit", "train", *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("step "))
        seconds = time.perf_counter() - started
        process.kill()
    return seconds


def time_first_steps(repeats: int, folder: Path) -> tuple[list[float], list[float]]:
    """Seconds to the first step's line of new and of resumed runs, interleaved."""
    base = (*SMOKE, "--set", "train.max_steps=4", "--out", str(folder / "base"))
    subprocess.run([sys.executable, "-m", "colakit", "train", *base], check=True, capture_output=True)
    fresh, resumed = [], []
    more = ("--set", "train.max_steps=40")  # so that every step has its line
    for i in range(repeats):
        fresh.append(first_step_s(*SMOKE, *more, "--out", str(folder / f"fresh-{i}")))
        checkpoint = folder / "base" / "checkpoints" / "step-00000003"
        resumed.append(first_step_s("--resume", str(checkpoint)))
    return fresh, resumed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cola-fan")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    config = resolve(args.preset).config
    with tempfile.TemporaryDirectory() as folder:
        blocked, bare, n_bytes = time_saves(config, args.repeats, Path(folder))
        fresh, resumed = time_first_steps(args.repeats, Path(folder))
    medians = {
        name: statistics.median(each)
        for name, each in (("blocked", blocked), ("safetensors", bare), ("fresh", fresh), ("resumed", resumed))
    }
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {pick_machine(config)}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": version("safetensors"),
        "preset": args.preset,
        "bytes": n_bytes,
        "blocked_s": round(medians["blocked"], 3),
        "safetensors_s": round(medians["safetensors"], 3),
        "blocked_ratio": round(medians["blocked"] / medians["safetensors"], 3),
        "fresh_first_step_s": round(medians["fresh"], 2),
        "resumed_first_step_s": round(medians["resumed"], 2),
        "first_step_ratio": round(medians["resumed"] / medians["fresh"], 3),
    }
    json.dump(result, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
