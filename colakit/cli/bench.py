"""``colakit bench``."""

from typing import Annotated

import typer

from colakit.cli import options
from colakit.config.load import resolve
from colakit.errors import ConfigError, Problem
from colakit.report.runs import bench_table, optimizer_notes, optimizer_table
from colakit.report.tables import print_json, print_note, print_table

OPTIMIZER_PRESET = "cola-fan"
"""Its matrices are those of Table 4's last four rows."""


def bench(
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            "-p",
            metavar="NAME|FILE.toml",
            help=f"What to measure; {options.DEFAULT_PRESET} unless given, with --optimizer-only {OPTIMIZER_PRESET}.",
            show_default=False,
        ),
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option(help="Sequences per optimizer step, such as 4,8,16; 16 unless given.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Timed steps, after a warm-up; 10 unless given, with --optimizer-only 9."),
    ] = None,
    optimizer_only: Annotated[
        bool,
        typer.Option(
            "--optimizer-only",
            help="Time only the update of the preset's matrices: Muon, its textbook form, torch's and AdamW.",
        ),
    ] = False,
    smoke: options.Smoke = False,
    sets: options.Sets = None,
    json: options.Json = False,
) -> None:
    """Measure speed and peak memory of a preset's training step, on random tokens; or of the optimizer alone."""
    if optimizer_only:
        if batch_sizes is not None:
            raise typer.BadParameter("has no part in --optimizer-only: leave it out.", param_hint="--batch-sizes")
        _optimizer(preset or OPTIMIZER_PRESET, steps or 9, smoke=smoke, sets=sets or [], json=json)
    else:
        _step(
            preset or options.DEFAULT_PRESET, batch_sizes or "16", steps or 10, smoke=smoke, sets=sets or [], json=json
        )


_OPTIMIZER_FIELDS = ("model.", "optim.", "train.seed", "train.device")
"""What the update of the matrices depends on."""


def _optimizer(preset: str, repeats: int, *, smoke: bool, sets: list[str], json: bool) -> None:
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

    record = bench_optimizer(config, pick_machine(config), repeats)
    if json:
        print_json(record.to_dict())
        return
    print_table(optimizer_table(record))
    for note in optimizer_notes(record):
        print_note(note)


def _step(preset: str, batch_sizes: str, steps: int, *, smoke: bool, sets: list[str], json: bool) -> None:
    sizes = _sizes(batch_sizes)
    for item in sets:
        if item.partition("=")[0].strip() == "train.batch_size":
            fix = "Give --batch-sizes instead."
            raise ConfigError([Problem("--set", item, "bench takes its batch sizes from --batch-sizes", fix)])
    # Every size goes through the rules, so that a wrong one is refused before any is measured.
    configs = [resolve(preset, smoke_run=smoke, sets=[*sets, f"train.batch_size={n}"]).config for n in sizes]
    from colakit.bench.measure import bench as measure_all

    records = list(measure_all(configs, steps))
    if json:
        print_json({"preset": configs[0].preset, "records": [r.to_dict() for r in records]})
    else:
        print_table(bench_table(records))


def _sizes(text: str) -> list[int]:
    try:
        sizes = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        fix = "Give whole numbers above 0 with commas between, as in --batch-sizes 4,8,16."
        raise ConfigError([Problem("--batch-sizes", text, "not a list of batch sizes", fix)])
    return sizes
