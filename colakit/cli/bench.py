"""``colakit bench``."""

from typing import Annotated

import typer

from colakit.cli import options
from colakit.config.load import resolve
from colakit.errors import ConfigError, Problem
from colakit.report.runs import bench_table
from colakit.report.tables import print_json, print_table


def bench(
    preset: options.Preset = options.DEFAULT_PRESET,
    batch_sizes: Annotated[str, typer.Option(help="Sequences per optimizer step, such as 4,8,16.")] = "16",
    steps: Annotated[int, typer.Option(min=1, help="Timed optimizer steps per batch size, after a warm-up.")] = 10,
    smoke: options.Smoke = False,
    sets: options.Sets = None,
    json: options.Json = False,
) -> None:
    """Measure speed and peak memory of a preset's training step, on random tokens."""
    sizes = _sizes(batch_sizes)
    for item in sets or []:
        if item.partition("=")[0].strip() == "train.batch_size":
            fix = "Give --batch-sizes instead."
            raise ConfigError([Problem("--set", item, "bench takes its batch sizes from --batch-sizes", fix)])
    # Every size goes through the rules, so that a wrong one is refused before any is measured.
    configs = [resolve(preset, smoke_run=smoke, sets=[*(sets or []), f"train.batch_size={n}"]).config for n in sizes]
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
