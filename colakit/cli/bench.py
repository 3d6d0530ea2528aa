"""``colakit bench``."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from colakit.analysis.regression import compare as compare_reports
from colakit.analysis.regression import differences, read_report
from colakit.cli import options
from colakit.cli.bench_max_batch import find_max_batch, print_max_batch
from colakit.cli.bench_nproc import sharing_contestants
from colakit.cli.bench_optimizer import bench_update, print_optimizer
from colakit.cli.shared import refuse_idle
from colakit.config.load import resolve
from colakit.config.presets import preset_names
from colakit.config.schema import RunConfig
from colakit.errors import ConfigError, Problem, RunError
from colakit.paper.methods import TABLE_3_BATCHES
from colakit.paper.optimizers import ADAMW_PRESET, MUON_PRESET
from colakit.records.base import SCHEMA_VERSION, to_json
from colakit.records.bench import BenchReport, MaxBatchReport, OptimizerBenchRecord
from colakit.report.bench import (
    bench_notes,
    comparison_table,
    memory_table,
    ratio_table,
    sharing_table,
    speed_table,
    use_table,
)
from colakit.report.max_batch import max_batch_notes
from colakit.report.progress import budget_bar
from colakit.report.tables import print_json, print_note, print_table

if TYPE_CHECKING:  # it comes with torch
    from colakit.bench.contestant import Contestant

OPTIMIZER_PRESET = "cola-fan"
"""Its matrices are those of Table 4's last four rows."""
_PEERS = ("hf-llama", "torch-muon")
_BUDGET_S = 300.0
_BATCH_SIZES = (16,)
"""That of Tables 4 and 5."""

R = TypeVar("R", BenchReport, MaxBatchReport, OptimizerBenchRecord)

app = typer.Typer(invoke_without_command=True)


@app.callback()
def bench(
    context: typer.Context,
    presets: Annotated[
        list[str] | None,
        typer.Option(
            "--preset",
            "-p",
            metavar="NAME|FILE.toml",
            help=f"What to measure; may be repeated. Without it: Table 3's {ADAMW_PRESET} and {MUON_PRESET}.",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every shipped preset.")] = False,
    batch_sizes: Annotated[
        str | None,
        typer.Option(help="Sequences per optimizer step; 16 unless given, without --preset 4,8,16,32,64,128."),
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option("--seq-len", min=1, max=options.MAX_SIZE, help="Tokens of a sequence; the preset's unless given."),
    ] = None,
    peers: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar="|".join(_PEERS),
            help="Also time transformers' Llama of the first dense preset's shape, or else of original's, with AdamW; "
            "or torch.optim.Muon. May be repeated.",
            show_default=False,
        ),
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Also time every preset under torch.compile.")] = False,
    max_batch: Annotated[
        bool, typer.Option("--max-batch", help="Search the largest batch that trains, by real steps, and time nothing.")
    ] = False,
    memory_gib: Annotated[
        float | None,
        typer.Option(
            help="Most memory for --max-batch; unless given, on CUDA what is free, on a CPU 60 % of it.",
            show_default=False,
        ),
    ] = None,
    budget_s: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="Seconds for all of it, 300 unless given; what cannot fit is listed with its time.",
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(min=1, help="Turns of each; unless given 3 or more, as many as fit; --optimizer-only 9."),
    ] = None,
    optimizer_only: Annotated[
        bool,
        typer.Option(
            "--optimizer-only",
            help="Time only the update of the preset's matrices: Muon, its textbook form, torch's and AdamW.",
        ),
    ] = False,
    nproc: Annotated[
        int | None,
        typer.Option(
            "--nproc",
            min=2,
            max=1024,
            help="Also processes that share the batch, beside one alone with as much as each of them has. How: --set "
            "parallel.strategy= ddp (unless given), zero1 or fsdp2.",
            show_default=False,
        ),
    ] = None,
    smoke: options.Smoke = False,
    sets: options.Sets = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Also write the report there.", show_default=False)
    ] = None,
    json: options.Json = False,
) -> None:
    """Measure speed and memory of presets' training steps, in turns, on random tokens; or of the optimizer alone."""
    if context.invoked_subcommand is not None:
        return
    if memory_gib is not None and not max_batch:
        raise typer.BadParameter("goes with --max-batch: add it, or leave this out.", param_hint="--memory-gib")
    if memory_gib is not None and not (0 < memory_gib < math.inf):
        raise typer.BadParameter("is a number of GiB above 0.", param_hint="--memory-gib")
    if out is not None and not out.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {out.parent}.", param_hint="--out")
    if out is not None and out.is_dir():
        raise typer.BadParameter(f"{out} is a folder: give a file in it.", param_hint="--out")
    if optimizer_only:
        useless = {
            "--batch-sizes": batch_sizes,
            "--seq-len": seq_len,
            "--peer": peers,
            "--all": everything,
            "--nproc": nproc,
        }
        more_useless = {"--compile": compiled, "--max-batch": max_batch, "--budget-s": budget_s}
        _refuse_useless({**useless, **more_useless}, "--optimizer-only")
        if len(presets or []) > 1:
            raise typer.BadParameter("--optimizer-only takes one.", param_hint="--preset")
        record = bench_update((presets or [OPTIMIZER_PRESET])[0], repeats or 9, smoke=smoke, sets=sets or [])
        _show(record, out=out, json=json, show=print_optimizer)
        return
    if max_batch:
        useless = {
            "--batch-sizes": batch_sizes,
            "--peer": peers,
            "--compile": compiled,
            "--repeats": repeats,
            "--nproc": nproc,
        }
        _refuse_useless(useless, "--max-batch")
    if everything and presets:
        raise typer.BadParameter("--all names every preset: leave --preset out.", param_hint="--preset")
    names = list(preset_names()) if everything else presets or [ADAMW_PRESET, MUON_PRESET]
    names = list(dict.fromkeys(names))
    more = [*(sets or []), *([f"model.seq_len={seq_len}"] if seq_len else [])]
    if max_batch:
        _refuse_sets(sets or [], _MAX_BATCH_OPTIONS)
        configs = [resolve(name, smoke_run=smoke, sets=more).config for name in names]
        found = find_max_batch(configs, memory_gib=memory_gib, budget_s=budget_s or _BUDGET_S)
        _show(found, out=out, json=json, show=print_max_batch)
        return
    sizes = (
        _sizes(batch_sizes)
        if batch_sizes is not None
        else [*(_BATCH_SIZES if everything or presets else TABLE_3_BATCHES)]
    )
    _refuse_sets(sets or [], _OPTIONS)
    if nproc is None:
        refuse_idle(sets or [])

    def config(name: str, size: int) -> RunConfig:
        return resolve(name, smoke_run=smoke, sets=[*more, f"train.batch_size={size}"]).config

    if nproc is not None:
        _refuse_useless({"--peer": peers}, "--nproc")
        contestants = sharing_contestants([config(n, s) for s in sizes for n in names], nproc, compiled=compiled)
    else:
        contestants = _contestants(names, sizes, config, compiled=compiled, peers=peers or [])
    from colakit.bench.run import run_bench

    with budget_bar(budget_s or _BUDGET_S) as watch:
        report = run_bench(contestants, budget_s=budget_s or _BUDGET_S, repeats=repeats, watch=watch)
    _show(report, out=out, json=json, show=_print_report)


def _show(report: R, *, out: Path | None, json: bool, show: Callable[[R], None]) -> None:
    """Print it and write it to `out`. Raises RunError where it has no result."""
    told = _why_empty(report)
    if json:
        print_json(report.to_dict())
    elif not told or isinstance(report, MaxBatchReport):  # of a search without a result the tries are of interest
        show(report)
    if out is not None:
        write_report(out, report.to_dict())
    if told:
        raise RunError(f"Nothing was measured. {' '.join(told)}")


def _why_empty(report: BenchReport | MaxBatchReport | OptimizerBenchRecord) -> list[str]:
    """What is said of a report without a result; nothing of any other."""
    if isinstance(report, OptimizerBenchRecord) or report.has_results:
        return []
    return bench_notes(report) if isinstance(report, BenchReport) else list(max_batch_notes(report))


def _contestants(
    names: list[str],
    sizes: list[int],
    config: Callable[[str, int], RunConfig],
    *,
    compiled: bool,
    peers: list[str],
) -> list["Contestant"]:
    """Everyone; all go through the rules here, so that a wrong one is refused before any is measured."""
    from colakit.bench.contestant import Contestant

    configs = [config(name, size) for size in sizes for name in names]
    everyone = [Contestant(c, compiled=way) for c in configs for way in ((False, True) if compiled else (False,))]
    for peer in dict.fromkeys(peers):
        if peer == "hf-llama":
            shape = next((name for name in names if config(name, sizes[0]).model.linear == "dense"), "original")
            everyone += [Contestant(config(shape, size), peer="hf-llama") for size in sizes]
        elif peer == "torch-muon":
            by_muon = [c for c in configs if c.optim.optimizer == "muon"]
            if not by_muon:
                raise typer.BadParameter("torch-muon needs a preset that trains with Muon.", param_hint="--peer")
            everyone += [Contestant(c, peer="torch-muon") for c in by_muon]
        else:
            raise typer.BadParameter(f"{peer!r} is neither {' nor '.join(_PEERS)}.", param_hint="--peer")
    return everyone


def _print_report(report: BenchReport) -> None:
    print_table(speed_table(report))
    print_table(memory_table(report))
    print_table(use_table(report))
    if any(r.processes > 1 for r in report.results):
        print_table(sharing_table(report))
    if report.ratios:
        print_table(ratio_table(report.ratios))
    for note in bench_notes(report):
        print_note(note)


def _refuse_useless(given: Mapping[str, object], where: str) -> None:
    for name, value in given.items():
        if value:
            raise typer.BadParameter(f"has no part in {where}: leave it out.", param_hint=name)


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE.json", show_default=False)],
    after: Annotated[Path, typer.Argument(metavar="AFTER.json", show_default=False)],
    threshold: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="Per cent of speed or memory that may be lost.")
    ] = 5.0,
    json: options.Json = False,
) -> None:
    """Compare two reports of --out. Exit code 1: something is worse by more than the threshold, or gone."""
    reports = read_report(before), read_report(after)
    records = compare_reports(*reports, threshold_frac=threshold / 100.0)
    notes = differences(*reports)
    if json:
        values = [record.to_dict() for record in records]
        print_json({"kind": "bench_comparisons", "comparisons": values, "machines_differ": notes})
    else:
        print_table(comparison_table(records))
        for note in notes:
            print_note(note)
    if any(record.is_worse for record in records):
        raise typer.Exit(1)


def write_report(path: Path, values: dict[str, object]) -> None:
    """Write the report as JSON. Raises RunError where it cannot be."""
    try:
        path.write_text(to_json({"schema": SCHEMA_VERSION, **values}, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}. Give another --out.") from error


_OPTIONS = {"train.batch_size": "--batch-sizes", "model.seq_len": "--seq-len", "train.compile": "--compile"}
"""Settings that are options here."""
_MAX_BATCH_OPTIONS = {
    "model.seq_len": "--seq-len",
    "train.micro_batch_size": "what it finds",
    "train.memory_gib": "--memory-gib",
}


def _refuse_sets(sets: list[str], options_of: dict[str, str]) -> None:
    for field, option in options_of.items():
        for item in sets:
            if item.partition("=")[0].strip() == field:
                fix = f"Give {option} instead." if option.startswith("--") else "Leave it out."
                raise ConfigError([Problem("--set", item, f"bench takes it from {option}", fix)])


def _sizes(text: str) -> list[int]:
    try:
        sizes = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        fix = "Give whole numbers above 0 with commas between, as in --batch-sizes 4,8,16."
        raise ConfigError([Problem("--batch-sizes", text, "not a list of batch sizes", fix)])
    return sizes
