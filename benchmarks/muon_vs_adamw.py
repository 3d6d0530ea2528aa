"""Validation loss of Muon and of AdamW at equal learning rates, three seeds, on the embedded corpus at smoke size.

    python benchmarks/muon_vs_adamw.py

Trains `cola-fan-muon` and its twin `cola-fan` at each of two rates, twelve runs in all, and writes muon_vs_adamw.md,
.svg and .json beside itself. Runs that exist in --runs are read, not repeated.
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
RATES = (2e-3, 8e-3)
"""What --smoke gives `cola-fan`, and what it gives `cola-fan-muon`."""
SEEDS = (0, 1, 2)
EVAL_EVERY = 50

Curve = dict[int, float]
"""Step → validation loss, nats per token."""


def train(preset: str, lr: float, seed: int, runs: Path) -> Curve:
    """The validation losses of one run, which is made unless it is there."""
    out = runs / f"{preset}-{lr:g}-{seed}"
    if not (out / "summary.json").exists():
        sets = (f"optim.lr={lr:g}", f"train.seed={seed}", f"train.eval_every={EVAL_EVERY}")
        options = [word for item in sets for word in ("--set", item)]
        command = ["-m", "colakit", "train", "--preset", preset, "--smoke", *options, "--out", str(out)]
        subprocess.run([sys.executable, *command], check=True)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert (config["optim"]["lr"], config["train"]["seed"]) == (lr, seed), out
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


def conclusion(lr: float, by_optimizer: dict[str, list[Curve]]) -> str:
    """How each optimizer ends, seed by seed."""
    ends = {name: [c[max(c)] for c in each] for name, each in by_optimizer.items()}
    shown = (f"{name} {', '.join(f'{end:.3f}' for end in each)}" for name, each in ends.items())
    return f"At {lr:g} the three runs end at {'; '.join(shown)}."


def draw(curves: dict[float, dict[str, list[Curve]]], path: Path) -> None:
    """A panel a rate, one line a run; the two optimizers differ in colour and dash."""
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(1, len(curves), sharey=True)
    for axes, (lr, by_optimizer) in zip(panels, curves.items(), strict=True):
        for (name, each), colour, dash in zip(by_optimizer.items(), ("#0072B2", "#D55E00"), ("-", "--"), strict=True):
            for i, curve in enumerate(each):
                label = name if i == 0 else None
                axes.plot(list(curve), list(curve.values()), dash, color=colour, linewidth=1.2, label=label)
        axes.set_title(f"learning rate {lr:g}", loc="left")
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("validation loss, nats per token")
    panels[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Train what is missing, then write the table, the figure and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/muon-vs-adamw"), help="where the run folders are")
    runs: Path = parser.parse_args().runs
    curves = {
        lr: {name: [train(preset, lr, seed, runs) for seed in SEEDS] for name, preset in PRESETS.items()}
        for lr in RATES
    }
    first = runs / f"{PRESETS['Muon']}-{RATES[0]:g}-{SEEDS[0]}"
    summary = json.loads((first / "summary.json").read_text(encoding="utf-8"))
    config = json.loads((first / "config.json").read_text(encoding="utf-8"))
    commit = json.loads((first / "environment.json").read_text(encoding="utf-8"))["git_commit"] or "unknown"
    machine = (
        f"{os.cpu_count()} {platform.machine()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )
    tables = "\n\n".join(f"Learning rate {lr:g}:\n\n{table(by_optimizer)}" for lr, by_optimizer in curves.items())
    ends = "\n".join(conclusion(lr, by_optimizer) for lr, by_optimizer in curves.items())
    text = f"""# Muon against AdamW, validation loss

`python benchmarks/muon_vs_adamw.py` on {machine}, commit {commit[:7]}:
`cola-fan-muon --smoke` and `cola-fan --smoke`, {summary["steps"]} steps of {config["train"]["batch_size"]} sequences of
{config["model"]["seq_len"]} tokens, seeds 0, 1 and 2 (weights and order), data
{summary["data_fingerprint"]}. Means over the seeds, ranges in brackets.
The rates are those that `--smoke` gives AdamW (0.002) and Muon (0.008). Other commits may differ by roundings.

{ends}

{tables}

![Validation loss over steps, a line a seed, a panel a learning rate](muon_vs_adamw.svg)
"""
    (HERE / "muon_vs_adamw.md").write_text(text, encoding="utf-8")
    (HERE / "muon_vs_adamw.json").write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    draw(curves, HERE / "muon_vs_adamw.svg")


if __name__ == "__main__":
    main()
