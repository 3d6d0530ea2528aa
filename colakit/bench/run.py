"""The whole of ``colakit bench``: contestants in, one report out."""

import time
from collections.abc import Sequence
from dataclasses import replace

from colakit.bench.contestant import Contestant
from colakit.bench.peaks import measure_peaks
from colakit.bench.report import bench_record, peer_record, ratios
from colakit.bench.study import Study, Watch
from colakit.build import Machine, on_machine, pick_machine
from colakit.config.schema import RunConfig
from colakit.errors import ConfigError, Problem
from colakit.host import describe_machine
from colakit.records.bench import BenchReport


def run_bench(
    contestants: Sequence[Contestant], *, budget_s: float, repeats: int | None = None, watch: Watch
) -> BenchReport:
    """Measure `contestants`, at least one, within `budget_s` seconds; `repeats` turns each, or as many as fit.

    Raises ConfigError where the device that is asked for is not there, or not everyone asks for the same.
    """
    began = time.monotonic()
    machine = _shared_machine([contestant.config for contestant in contestants])
    contestants = [replace(c, config=on_machine(c.config, machine)) for c in contestants]
    watch("the peaks of this machine")
    peak = measure_peaks(machine)
    study = Study(machine, peak.matmul_flops_per_s, budget_s, repeats, watch)
    everyone = list(study.run(contestants))
    results = tuple(bench_record(m, machine, peak.matmul_flops_per_s) for m in everyone if m.contestant.peer is None)
    peers = tuple(peer_record(m, machine) for m in everyone if m.contestant.peer is not None)
    return BenchReport(
        machine=describe_machine(),
        peak=peak,
        budget_s=budget_s,
        seconds=time.monotonic() - began,
        results=results,
        peers=peers,
        ratios=tuple(ratios(results, peers)),
    )


def _shared_machine(configs: Sequence[RunConfig]) -> Machine:
    wanted = {(c.train.device, c.train.dtype, c.model.attention): c for c in configs}
    machines = {replace(pick_machine(config), compiles=False): config.preset for config in wanted.values()}
    if len(machines) > 1:
        rule = "presets of one run are measured on one device, in one type, with one attention"
        fix = "Measure them by themselves, or --set train.device, train.dtype and model.attention for all."
        raise ConfigError([Problem("--preset", list(machines.values()), rule, fix)])
    return next(iter(machines))
