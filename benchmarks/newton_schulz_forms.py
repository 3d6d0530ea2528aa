"""Which form of Newton–Schulz is fastest on this machine, and how exact each is, for every shape of a preset.

    python benchmarks/newton_schulz_forms.py [--preset cola-fan] [--repeats 20] [--smoke]

Prints JSON: milliseconds for all matrices of a shape, interleaved, medians; errors relative to float64. On CUDA also
compiled and in TF32. The step as a whole is `colakit bench --optimizer-only`; what Muon adds to training,
`colakit bench --preset cola-fan-muon --batch-sizes 16,64` beside `--preset cola-fan`.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from colakit.analysis.inventory import group_of, parameters
from colakit.config.load import resolve
from colakit.config.schema import OptimConfig
from colakit.optim.newton_schulz import gram, normalize_, textbook

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def time_ms(work: Callable[[], object]) -> float:
    """Milliseconds of `work`, to its end on the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return 1000.0 * (time.perf_counter() - started)


def forms(x: Tensor, c: OptimConfig) -> dict[str, Callable[[], Tensor]]:
    """Every way to orthogonalise `x`."""
    options, half = (c.ns_coefficients, c.ns_steps), x.bfloat16()

    def gram_in_tf32() -> Tensor:
        torch.set_float32_matmul_precision("high")
        out = gram(x, *options)
        torch.set_float32_matmul_precision("highest")
        return out

    found = {
        "textbook bfloat16": lambda: textbook(half, *options),
        "textbook float32": lambda: textbook(x, *options),
        "gram float32": lambda: gram(x, *options),
    }
    if DEVICE.type == "cuda":
        compiled = torch.compile(textbook, dynamic=False)
        found |= {"textbook bfloat16, compiled": lambda: compiled(half, *options), "gram TF32": gram_in_tf32}
    return found


def measure(shape: tuple[int, int], n: int, c: OptimConfig, repeats: int) -> dict[str, object]:
    """Times and errors of all forms for `n` random matrices."""
    x = normalize_(torch.randn(n, *shape, device=DEVICE))
    ways = forms(x, c)
    expected = textbook(x.double(), c.ns_coefficients, c.ns_steps)
    errors = {name: float((way().double() - expected).norm() / expected.norm()) for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            times[name].append(time_ms(way))
    ms = {name: round(statistics.median(each), 3) for name, each in times.items()}
    return {"matrices": n, "shape": shape, "ms": ms, "relative_error": errors}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cola-fan")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    config = resolve(args.preset, smoke_run=args.smoke, sets=["optim.optimizer=muon"]).config
    shapes = Counter(
        (p.shape[0] // p.matrices, p.shape[1])
        for p in parameters(config.model)
        if group_of(p.role, muon=True) == "muon"
        for _ in range(p.matrices)
    )
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    rows = [measure(shape, n, config.optim, args.repeats) for shape, n in shapes.items()]
    json.dump({"device": device, "torch": torch.__version__, "shapes": rows}, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
