"""How each kind of printed figure is measured here: a command line, or why there is none."""

from dataclasses import dataclass

TABLE_3_BATCHES = (4, 8, 16, 32, 64, 128)
"""The batch sizes of Table 3."""


@dataclass(frozen=True)
class Method:
    """A way to measure a figure, or the reason why there is none."""

    command: str | None
    """A command line that can be run as it stands."""
    obstacle: str | None = None
    """What keeps it from being measured, where there is none."""

    @property
    def untestable(self) -> str | None:
        """Why there is no command to run."""
        return f"not testable here: {self.obstacle}" if self.obstacle is not None else None


def _untestable(reason: str) -> Method:
    return Method(None, reason)


OTHER_PAPER = _untestable("a figure of another paper, not of these experiments")
DEFINITION = _untestable("a definition, which the implementation follows")
STATEMENT = _untestable("a statement without a figure")
NOT_PRINTED = _untestable("the paper prints no figure")
UNNAMED_RUN = _untestable("a run whose model the paper does not name")
BUDGET = _untestable("a setting of one run of the paper, not a result")
CURVE = _untestable("read off a smoothed curve, by a rule that the paper does not give")
DERIVED = _untestable("a comparison of printed figures, each of which has its own command")
TOTAL_TIME = _untestable("a time on the paper's RTX 4090; the speed behind it has its own command")

TRAFFIC = Method("colakit bench --preset cola-fan-muon --nproc 2 --set parallel.strategy=zero1")
"""Counts what processes send with Muon, and with AdamW in its place."""


def params(*presets: str) -> Method:
    """Counts the parameters of one preset, or of several beside each other."""
    return Method("colakit params " + " ".join(f"--preset {preset}" for preset in presets))


def memory(*presets: str, batch_size: int = 16) -> Method:
    """Counts what a training step holds: weights, gradients, optimizer state and activations."""
    return Method(f"{params(*presets).command} --memory --batch-size {batch_size}")


def bench(preset: str, batch_size: int = 16) -> Method:
    """Times a step: it/s, examples/s, tokens/s, ms per step and pass, memory, and how busy the GPU was."""
    return Method(f"colakit bench --preset {preset} --batch-sizes {batch_size}")


def bench_both(first: str, second: str, batch_size: int = 16) -> Method:
    """Times the steps of two presets in turns, or where `second` carries options, one after the other."""
    if " " not in second:
        return Method(f"colakit bench --preset {first} --preset {second} --batch-sizes {batch_size}")
    return Method(f"{bench(first, batch_size).command} && {bench(second, batch_size).command}")


TABLE_3_STUDY = Method("colakit bench")
"""Table 3 as a whole: AdamW beside Muon, at every batch size."""


def batch_study(preset: str) -> Method:
    """Times the batch sizes of Table 3."""
    return Method(f"colakit bench --preset {preset} --batch-sizes {','.join(map(str, TABLE_3_BATCHES))}")


def max_batch(preset: str) -> Method:
    """Searches for the largest batch that fits."""
    return Method(f"colakit bench --preset {preset} --max-batch")


def train(preset: str) -> Method:
    """Trains the preset on its own data; losses, accuracy and skipped steps are in the run's summary."""
    return Method(f"colakit train --preset {preset}")


def train_both(first: str, second: str) -> Method:
    """Trains two presets; `second` may carry options."""
    return Method(f"colakit train --preset {first} && colakit train --preset {second}")


def train_ddp(preset: str) -> Method:
    """Trains on two GPUs."""
    return Method(f"colakit train --preset {preset} --nproc 2")


def spectrum() -> Method:
    """Singular values of a saved run's activations."""
    return Method("colakit eval RUN --spectrum")


def shows(preset: str) -> Method:
    """Shows the resolved setting that this preset uses."""
    return Method(f"colakit presets show {preset}")


def flops(*, d: int, r: int) -> Method:
    """Counts Table 6."""
    return Method(f"colakit flops --d {d} --r {r}")
