"""The whole of ``colakit bench``: contestants in, one report out; or configurations whose largest batch is asked."""

import time
from collections.abc import Sequence
from dataclasses import replace

from colakit.bench.contestant import Contestant
from colakit.bench.max_batch import Search
from colakit.bench.peaks import measure_peaks
from colakit.bench.probe import KEPT_FREE, Room, find_room
from colakit.bench.report import bench_record, max_batch_record, peer_record, ratios, with_efficiency
from colakit.bench.study import Study, Watch
from colakit.build import Machine, on_machine, pick_machine, will_compile
from colakit.config.schema import RunConfig
from colakit.errors import ConfigError, Problem
from colakit.host import describe_machine
from colakit.records.bench import BenchReport, MaxBatchReport
from colakit.units import GIB, gib

CPU_SHARE = 0.6
"""Of free memory, unless a limit is given: the machine never swaps."""


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
    everyone = sorted(
        study.run(contestants), key=lambda m: (m.contestant.config.train.batch_size, contestants.index(m.contestant))
    )
    # Again, since one that was disturbed would make everyone's share of it too large.
    peak = max(peak, measure_peaks(machine), key=lambda p: p.matmul_flops_per_s)
    results = with_efficiency(
        [bench_record(m, machine, peak.matmul_flops_per_s) for m in everyone if m.contestant.peer is None]
    )
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


def run_max_batch(
    configs: Sequence[RunConfig], *, memory_gib: float | None, budget_s: float, watch: Watch
) -> MaxBatchReport:
    """Search the largest batch of each of `configs`, one after another, each within its part of what time is left.

    The limit is `memory_gib`, else on CUDA what is free, on a CPU 60 % of it. Raises ConfigError for more than is free,
    where the device that is asked for is not there, or not everyone asks for the same.
    """
    began = time.monotonic()
    shared = _shared_machine(configs)
    limit: int | None = None
    results = []
    for i, config in enumerate(configs):
        machine = replace(shared, compiles=will_compile(config, shared.device))
        watch("what is free, and how fast this machine is")
        room = find_room(config, machine)
        limit = limit or _limit(memory_gib, room, machine)
        ends = time.monotonic() + (began + budget_s - time.monotonic()) / (len(configs) - i)
        search = Search(on_machine(config, machine), machine, room, limit, ends, watch)
        results.append(max_batch_record(search, search.run()))
    return MaxBatchReport(describe_machine(), budget_s, time.monotonic() - began, tuple(results))


def _limit(memory_gib: float | None, room: Room, machine: Machine) -> int:
    if memory_gib is None:
        return int((CPU_SHARE if machine.device.type == "cpu" else 1.0) * room.free)
    most = room.free - (KEPT_FREE if machine.device.type == "cpu" else 0)
    if memory_gib * GIB > most:
        rule = f"only {gib(most):.2f} GiB are free"
        raise ConfigError([Problem("--memory-gib", memory_gib, rule, "Give less, or close what holds the rest.")])
    return int(memory_gib * GIB)


def _shared_machine(configs: Sequence[RunConfig]) -> Machine:
    wanted = {(c.train.device, c.train.dtype, c.model.attention): c for c in configs}
    machines = {replace(pick_machine(config), compiles=False): config.preset for config in wanted.values()}
    if len(machines) > 1:
        rule = "presets of one run are measured on one device, in one type, with one attention"
        fix = "Measure them by themselves, or --set train.device, train.dtype and model.attention for all."
        raise ConfigError([Problem("--preset", list(machines.values()), rule, fix)])
    return next(iter(machines))
