"""``colakit bench --optimizer-only``."""

from colakit.config.load import resolve
from colakit.errors import ConfigError, Problem
from colakit.records.bench import OptimizerBenchRecord
from colakit.report.bench import optimizer_notes, optimizer_table
from colakit.report.tables import print_note, print_table

_OPTIMIZER_FIELDS = ("model.", "optim.", "train.seed", "train.device")
"""What the update of the matrices depends on."""


def bench_update(preset: str, repeats: int, *, smoke: bool, sets: list[str]) -> OptimizerBenchRecord:
    """Time the update of a preset's matrices, by Muon and what there is beside it."""
    idle = [item for item in sets if not item.strip().startswith(_OPTIMIZER_FIELDS)]
    if idle:
        fix = "Leave it out: the matrices' update depends on model, optim, train.seed and train.device alone."
        raise ConfigError([Problem("--set", item, "has no part in --optimizer-only", fix) for item in idle])
    config = resolve(preset, smoke_run=smoke, sets=["optim.optimizer=muon", *sets]).config
    if config.optim.optimizer != "muon":
        fix = "Leave it out: AdamW is measured beside Muon."
        raise ConfigError([Problem("optim.optimizer", config.optim.optimizer, "--optimizer-only is about Muon", fix)])
    from colakit.bench.optimizer import bench_optimizer
    from colakit.build import pick_machine

    return bench_optimizer(config, pick_machine(config), repeats)


def print_optimizer(record: OptimizerBenchRecord) -> None:
    """Everyone's time, and what an update does and holds."""
    print_table(optimizer_table(record))
    for note in optimizer_notes(record):
        print_note(note)
