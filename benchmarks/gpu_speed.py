"""The speeds that colakit is to reach on a GPU, each measured by the command that it names.

    python benchmarks/gpu_speed.py [--out benchmarks/GPU-NAME.json]

In bfloat16 at 16 × 1024: CoLA with the small tokenizer against the original, Muon against AdamW, utilisation; and the
largest batch of CoLA-M against plain CoLA's. Prints each figure beside what it is to be; the file holds the reports
whole, with machine, versions and commit. Takes about ten minutes.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SPEED = "bench -p original -p cola-smollm2 -p cola-smollm2-muon -p cola-m --batch-sizes 16 --compile --peer hf-llama"
LARGEST = "bench -p cola-smollm2 -p cola-m --max-batch"
BUDGET = "--budget-s 270"


def report(command: str) -> dict[str, Any]:  # Any: JSON values
    """What colakit prints for `command`."""
    line = [sys.executable, "-m", "colakit", *f"{command} {BUDGET} --json".split()]
    found: dict[str, Any] = json.loads(subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return found


def lines(speed: dict[str, Any], largest: dict[str, Any]) -> list[tuple[str, float | None, str]]:  # Any: JSON values
    """What each figure is, its value and what it is to be."""
    results = {(r["preset"], r["compiled"]): r for r in speed["results"]}
    batches = {r["preset"]: r["max_batch"] for r in largest["results"]}

    def ratio(of: str, over: str, *, compiled: bool, what: str = "it_per_s") -> float | None:
        a, b = results[of, compiled][what], results[over, compiled][what]
        return a / b if a and b else None

    plain, rematted = batches["cola-smollm2"], batches["cola-m"]
    found: list[tuple[str, float | None, str]] = []
    for compiled in (False, True):
        way = "compiled" if compiled else "eager"
        found += [
            (f"cola-smollm2 over original, {way}", ratio("cola-smollm2", "original", compiled=compiled), ">= 2.2"),
            (f"Muon over AdamW, {way}", ratio("cola-smollm2-muon", "cola-smollm2", compiled=compiled), ">= 0.95"),
            (f"cola-m's step over plain, {way}", ratio("cola-smollm2", "cola-m", compiled=compiled), "<= 1.35"),
            (f"GPU utilisation, {way}", results["cola-smollm2", compiled]["gpu_util_frac"], ">= 0.95"),
        ]
    found.append(("largest batch, cola-m over plain", rematted / plain if plain and rematted else None, ">= 1.8"))
    return found


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    speed, largest = report(SPEED), report(LARGEST)
    if out is not None:
        reports = {f"colakit {SPEED} {BUDGET}": speed, f"colakit {LARGEST} {BUDGET}": largest}
        out.write_text(json.dumps(reports, indent=2) + "\n", encoding="utf-8")
    for what, value, wanted in lines(speed, largest):
        sys.stdout.write(f"{what:45} {'n/a' if value is None else f'{value:.2f}':>6}   {wanted}\n")


if __name__ == "__main__":
    main()
