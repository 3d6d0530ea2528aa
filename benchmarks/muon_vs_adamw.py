"""Validation loss of Muon and of AdamW at one learning rate, three seeds, on the embedded corpus at smoke size.

    python benchmarks/muon_vs_adamw.py

Trains `cola-fan-muon` and its twin `cola-fan` six times in all, and writes muon_vs_adamw.md, .svg and .json beside
itself. Runs that exist in --runs are read, not repeated.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

HERE = Path(__file__).parent
PRESETS = {"Muon": "cola-fan-muon", "AdamW": "cola-fan"}
SEEDS = (0, 1, 2)
EVAL_EVERY = 50

Curve = dict[int, float]
"""Step → validation loss, nats per token."""


def train(preset: str, seed: int, out: Path) -> Curve:
    """The validation losses of one run, which is made unless it is there."""
    if not (out / "summary.json").exists():
        sets = ["--set", f"train.seed={seed}", "--set", f"train.eval_every={EVAL_EVERY}"]
        command = ["-m", "colakit", "train", "--preset", preset, "--smoke", *sets, "--out", str(out)]
        subprocess.run([sys.executable, *command], check=True)
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return {r["step"]: r["val_loss"] for r in records if r["kind"] == "eval"}


def table(curves: dict[str, list[Curve]]) -> str:
    """Mean over the seeds, least and most, at every evaluation."""
    rows = ["| step | Muon | AdamW | AdamW − Muon, seed by seed |", "|---:|---:|---:|---:|"]
    for step in curves["Muon"][0]:
        values = {name: [c[step] for c in each] for name, each in curves.items()}
        cells = [f"{statistics.mean(v):.4f} ({min(v):.4f} – {max(v):.4f})" for v in values.values()]
        gaps = (f"{a - m:+.4f}" for a, m in zip(values["AdamW"], values["Muon"], strict=True))
        rows.append(f"| {step} | {' | '.join(cells)} | {', '.join(gaps)} |")
    return "\n".join(rows)


def draw(curves: dict[str, list[Curve]], path: Path) -> None:
    """One line a run; the two optimizers differ in colour and dash."""
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for (name, each), colour, dash in zip(curves.items(), ("#0072B2", "#D55E00"), ("-", "--"), strict=True):
        for i, curve in enumerate(each):
            label = name if i == 0 else None
            axes.plot(list(curve), list(curve.values()), dash, color=colour, linewidth=1.2, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss, nats per token")
    axes.set_title("cola-fan --smoke at equal learning rate, seeds 0, 1, 2", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/muon-vs-adamw"), help="where the run folders are")
    runs: Path = parser.parse_args().runs
    curves = {
        name: [train(preset, seed, runs / f"{preset}-{seed}") for seed in SEEDS] for name, preset in PRESETS.items()
    }
    summary = json.loads((runs / f"{PRESETS['Muon']}-0" / "summary.json").read_text(encoding="utf-8"))
    config = json.loads((runs / f"{PRESETS['Muon']}-0" / "config.json").read_text(encoding="utf-8"))
    train_config, lr = config["train"], config["optim"]["lr"]
    machine = (
        f"{os.cpu_count()} {platform.machine()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )
    text = f"""# Muon against AdamW, validation loss

`python benchmarks/muon_vs_adamw.py` on {machine}:
`cola-fan-muon --smoke` and `cola-fan --smoke`, learning rate {lr:g} for both, {summary["steps"]} steps of
{train_config["batch_size"]} sequences of {config["model"]["seq_len"]} tokens, seeds 0, 1 and 2 (weights and order),
data {summary["data_fingerprint"]}. Means over the seeds, ranges in brackets. The rate is the smoke preset's; neither
optimizer was tuned, so this says what happens at equal rates, not which is better at its best.

{table(curves)}

![Validation loss over steps](muon_vs_adamw.svg)
"""
    (HERE / "muon_vs_adamw.md").write_text(text, encoding="utf-8")
    (HERE / "muon_vs_adamw.json").write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    draw(curves, HERE / "muon_vs_adamw.svg")


if __name__ == "__main__":
    main()
