"""What `bench` shows: speed, memory and use of the machine, ratios, and the optimizers beside each other."""

from collections.abc import Iterable

from rich.table import Table

from colakit.records.bench import (
    BY_ADAMW,
    BenchRecord,
    BenchReport,
    ComparisonRecord,
    OptimizerBenchRecord,
    PeerBenchRecord,
    RatioRecord,
)
from colakit.report.runs import figure
from colakit.report.tables import add_name_column, add_number_column, new_table
from colakit.units import gib

_UNSTEADY = 0.5
"""Of the median step: between the tenth and the ninetieth percentile."""
_BUSY = 0.7
_FEW_TURNS = 3


def speed_table(report: BenchReport) -> Table:
    """How fast everyone was, and where the time went."""
    first = report.results[0] if report.results else None
    where = f": {first.device}, attention {first.attention}" if first is not None else ""
    table = new_table(f"speed{where}")
    add_name_column(table, "")
    columns = ("batch", "tokens", "it/s", "paper", "examples/s", "tokens/s", "ms/step", "p10 … p90")
    for column in (*columns, "forward", "backward", "optimizer", "data", "MFU, %", "turns"):
        add_number_column(table, column)
    for r in report.results:
        spread = f"{r.step_ms_p10:,.0f} … {r.step_ms_p90:,.0f}" if r.step_ms_p10 and r.step_ms_p90 else "n/a"
        table.add_row(
            r.name,
            str(r.batch_size),
            str(r.seq_len),
            figure(r.it_per_s, "{:.3f}"),
            _paper(r, "it_per_s", "examples_per_s", "step_ms", "tokens_per_s"),
            figure(r.examples_per_s, "{:,.2f}"),
            figure(r.tokens_per_s, "{:,.0f}"),
            figure(r.step_ms, "{:,.1f}"),
            spread,
            *(figure(ms, "{:,.1f}") for ms in (r.forward_ms, r.backward_ms, r.optimizer_ms, r.data_ms)),
            figure(_percent(r.mfu_frac), "{:.1f}"),
            str(r.repeats),
        )
    for peer in report.peers:
        its = 1000.0 / peer.step_ms if peer.step_ms else None
        table.add_row(
            peer.name,
            str(peer.batch_size),
            str(peer.seq_len),
            figure(its, "{:.3f}"),
            "",
            figure(its and its * peer.batch_size, "{:,.2f}"),
            figure(peer.tokens_per_s, "{:,.0f}"),
            figure(peer.step_ms, "{:,.1f}"),
            *("",) * 6,
            str(peer.repeats),
        )
    return table


def memory_table(report: BenchReport) -> Table:
    """What everyone held."""
    table = new_table("memory, GiB")
    add_name_column(table, "")
    columns = ("peak", "paper", "reserved", "device", "weights", "gradients", "optimizer", "activations")
    for column in ("batch", *columns, "allocator retries"):
        add_number_column(table, column)
    for r in report.results:
        peak, paper = figure(r.peak_memory_gib, "{:.3f}"), _paper(r, "vram")
        held = (r.reserved_gib, r.device_gib, r.weights_gib, r.gradients_gib, r.optimizer_gib, r.activations_gib)
        cells = (figure(n, "{:.3f}") for n in held)
        table.add_row(r.name, str(r.batch_size), peak, paper, *cells, figure(r.alloc_retries, "{:d}"))
    for peer in report.peers:
        table.add_row(peer.name, str(peer.batch_size), figure(peer.peak_memory_gib, "{:.3f}"))
    return table


def use_table(report: BenchReport) -> Table:
    """How busy the machine was, and how steady."""
    table = new_table("use of the machine")
    add_name_column(table, "")
    columns = ("GPU, %", "paper", "± %", "GPU memory busy, %", "W", "GB/s", "paper", "CPU, %", "spread of steps, %")
    for column in ("batch", *columns):
        add_number_column(table, column)
    for r in report.results:
        spread_and_busy = (r.gpu_util_spread_frac, r.memory_busy_frac)
        table.add_row(
            r.name,
            str(r.batch_size),
            figure(_percent(r.gpu_util_frac), "{:.1f}"),
            _paper(r, "gpu_util"),
            *(figure(_percent(share), "{:.1f}") for share in spread_and_busy),
            figure(r.power_w, "{:.0f}"),
            figure(r.gb_per_s, "{:.0f}"),
            _paper(r, "bandwidth"),
            figure(_percent(r.cpu_util_frac), "{:.0f}"),
            figure(_percent(r.step_spread_frac), "{:.1f}"),
        )
    return table


def sharing_table(report: BenchReport) -> Table:
    """What several processes come to, beside one that has as large a batch as each of them."""
    table = new_table("several processes")
    add_name_column(table, "")
    columns = ("batch", "it/s each", "it/s, sum", "tokens/s", "efficiency, %", "MB sent each, a step", "x AdamW's MB")
    for column in (*columns, "communicating, %", "optimizer MiB each"):
        add_number_column(table, column)
    for r in report.results:
        if r.processes == 1:
            continue
        sent = sum(r.sent_bytes.values())
        adamw = next((o for o in report.results if _is_adamw_of(o, r)), None)
        more = sent / sum(adamw.sent_bytes.values()) if adamw is not None and adamw.sent_bytes else None
        table.add_row(
            r.name,
            str(r.batch_size),
            figure(r.it_per_s, "{:.3f}"),
            figure(r.it_per_s and r.processes * r.it_per_s, "{:.3f}"),
            figure(r.tokens_per_s, "{:,.0f}"),
            figure(_percent(r.efficiency_frac), "{:.0f}"),
            figure(sent / 1e6 if r.sent_bytes else None, "{:,.2f}"),
            "" if more is None else f"{more:.2f}",
            figure(_percent(r.communicating_frac), "{:.0f}"),
            figure(r.optimizer_gib and 1024 * r.optimizer_gib, "{:,.2f}"),
        )
    return table


def _is_adamw_of(one: BenchRecord, other: BenchRecord) -> bool:
    """Whether `one` is the same run as `other`, which trains by Muon, by AdamW."""
    return one.preset == other.preset + BY_ADAMW and (one.processes, one.strategy, one.batch_size, one.compiled) == (
        other.processes,
        other.strategy,
        other.batch_size,
        other.compiled,
    )


def ratio_table(records: Iterable[RatioRecord]) -> Table:
    """Of two contestants each."""
    table = new_table("ratios, all of this run")
    add_name_column(table, "")
    add_name_column(table, "over")
    for column in ("batch", "tokens/s", "paper", "peak memory", "paper"):
        add_number_column(table, column)
    for r in records:
        paper, paper_memory = ("" if ratio is None else f"{ratio:.2f}" for ratio in (r.paper, r.paper_memory))
        memory = figure(r.peak_memory, "{:.2f}")
        table.add_row(r.of, r.over, str(r.batch_size), f"{r.tokens_per_s:.2f}", paper, memory, paper_memory)
    return table


def comparison_table(records: Iterable[ComparisonRecord]) -> Table:
    """Before and after."""
    table = new_table("after over before")
    add_name_column(table, "")
    for column in ("batch", "tokens", "tokens/s before", "after", "speed", "peak memory"):
        add_number_column(table, column)
    add_name_column(table, "")
    for r in records:
        table.add_row(
            r.name,
            str(r.batch_size),
            str(r.seq_len),
            f"{r.before_tokens_per_s:,.0f}",
            figure(r.after_tokens_per_s, "{:,.0f}"),
            figure(r.speed, "{:.3f}"),
            figure(r.peak_memory, "{:.3f}"),
            "not measured again" if r.speed is None else "worse" if r.is_worse else "",
        )
    return table


def bench_notes(report: BenchReport) -> list[str]:
    """What was not measured and why, what shares are of, and the machine."""
    everyone: list[BenchRecord | PeerBenchRecord] = [*report.results, *report.peers]
    by_reason: dict[str, list[str]] = {}
    for r in everyone:
        if r.reason:
            by_reason.setdefault(r.reason, []).append(f"{r.name}, batch {r.batch_size}")
    notes = [f"{'; '.join(names)}: {reason}." for reason, names in by_reason.items()]
    disturbed = [f"{r.name}, batch {r.batch_size}" for r in report.results if _is_disturbed(r, report.peak.device)]
    if disturbed:
        notes.append(
            f"{'; '.join(disturbed)}: steps differ by more than {100 * _UNSTEADY:.0f} %, or had less than "
            f"{100 * _BUSY:.0f} % of the CPUs, so that ratios mean little. Measure again while the machine does "
            "nothing else, or with more --repeats."
        )
    if any(0 < r.repeats < _FEW_TURNS for r in everyone):
        notes.append(f"Fewer than {_FEW_TURNS} turns: ratios of so few say little.")
    if report.machine.products == "oneDNN" and any(p.name == "hf-llama" and p.step_ms for p in report.peers):
        notes.append(
            "On this CPU colakit has float32 products made by oneDNN, which is faster; hf-llama's are MKL's, as in a "
            "script that asks for nothing else: the ratios over it hold that too."
        )
    if shared := [r for r in report.results if r.processes > 1]:
        notes.append(
            "Efficiency is over as many processes alone, each with the batch that is its share and as many threads. "
            "MB are counted as rings send them; communicating is also waiting for others."
        )
        if report.peak.device == "cpu":
            notes.append(
                f"Each process has {shared[0].threads} of the {report.machine.usable_cpus} CPUs, alone too. Whether "
                "sharing them is worth it at all, `colakit bench` without --nproc tells by its tokens/s."
            )
    if any(r.step_ms for r in report.results):
        m = report.machine
        on = m.gpu if report.peak.device == "cuda" else f"{m.cpu}, {m.usable_cpus} CPUs"
        notes.append(f"Measured on {on}; torch {m.packages['torch']}, Python {m.python}.")
        notes.append(
            f"MFU is of {report.peak.matmul_flops_per_s / 1e12:.3g} TFLOP/s, what a square product reaches here in "
            f"{report.peak.dtype}. The paper's figures are of an RTX 4090: compare ratios."
        )
    return notes


def _is_disturbed(r: BenchRecord, device: str) -> bool:
    is_starved = device == "cpu" and r.cpu_util_frac is not None and r.cpu_util_frac < _BUSY
    return (r.step_spread_frac or 0.0) > _UNSTEADY or is_starved


def optimizer_table(r: OptimizerBenchRecord) -> Table:
    """Muon's step beside its alternatives."""
    table = new_table(f"Optimizers on the {r.matrices} matrices of {r.preset}: {r.device}, {r.repeats} repeats")
    add_name_column(table, "")
    for column in ("ms/step", "× Muon's"):
        add_number_column(table, column)
    rows = {
        f"Muon ({r.dtype})": r.muon_ms,
        "Muon, textbook form": r.textbook_ms,
        "torch.optim.Muon": r.torch_muon_ms,
        "AdamW": r.adamw_ms,
    }
    for name, ms in rows.items():
        table.add_row(name, f"{ms:,.1f}", f"{ms / r.muon_ms:.2f}")
    return table


def optimizer_notes(r: OptimizerBenchRecord) -> list[str]:
    """Work, memory, and how a figure was had."""
    return [
        f"Muon: {r.muon_flops / 1e9:,.1f} GFLOP of Newton–Schulz, {r.muon_flops / r.muon_ms / 1e6:,.0f} GFLOP/s.",
        f"Its state is 1× the {r.parameters:,} parameters, {gib(r.state_bytes):.3f} GiB; a step's workspace "
        f"{gib(r.workspace_bytes):.3f} GiB.",
        *([f"{r.reason}."] if r.reason else []),
        *(["Fewer than 5 repeats: expect the ratios to move by a quarter."] if r.repeats < 5 else []),
    ]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * share


def _paper(r: BenchRecord, *quantities: str) -> str:
    """All figures of it, of which tables may have different ones."""
    return ", ".join(f"{c.value:g} {c.unit}" for c in r.claims if c.quantity in quantities)
