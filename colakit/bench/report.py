"""From what was measured to the records that leave: rates, shares, ratios, and the paper's figures beside them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from colakit.analysis.flops import step_flops
from colakit.bench.contestant import Contestant
from colakit.bench.course import Figures
from colakit.bench.max_batch import MARGIN_FRAC, Found, Search, largest_divisor
from colakit.bench.study import Measured
from colakit.build import Machine
from colakit.paper import methods
from colakit.paper.claims import CLAIMS, Claim, claim
from colakit.paper.optimizers import ADAMW_PRESET, MUON_PRESET
from colakit.records.bench import BenchRecord, MaxBatchRecord, PaperFigure, PeerBenchRecord, RatioRecord
from colakit.units import gib

_PAPER_SEQ_LEN = 1024
_SPEEDS = ("examples_per_s", "it_per_s", "tokens_per_s")


def bench_record(measured: Measured, machine: Machine, peak_flops_per_s: float) -> BenchRecord:
    """Of one of colakit's own contestants."""
    config, claims = measured.contestant.config, paper_figures(measured.contestant)
    record = BenchRecord(
        preset=config.preset,
        optimizer=config.optim.optimizer,
        batch_size=config.train.batch_size,
        micro_batch_size=config.train.effective_micro_batch_size,
        seq_len=config.model.seq_len,
        device=str(machine),
        dtype=str(machine.dtype).removeprefix("torch."),
        attention=machine.attention,
        compiled=measured.contestant.compiled,
        processes=measured.contestant.nproc,
        strategy=config.parallel.strategy if measured.contestant.nproc > 1 else None,
        threads=measured.contestant.threads,
        claim=next((figure for figure in claims if figure.quantity in _SPEEDS), None),
        claims=claims,
        not_run_s=measured.not_run_s,
        reason=measured.reason,
    )
    figures = measured.figures
    if figures is None:
        return record
    if figures.skipped:  # a step without its update is no step of training
        reason = f"{figures.skipped} updates skipped: loss or gradient not finite; lower optim.lr"
        return replace(record, reason=reason)
    return _with_figures(record, measured.contestant, figures, measured.repeats, peak_flops_per_s)


def _with_figures(
    record: BenchRecord, contestant: Contestant, figures: Figures, repeats: int, peak_flops_per_s: float
) -> BenchRecord:
    p10, p50, p90 = np.percentile(figures.times, [10, 50, 90]).tolist()
    batch, gpu, memory = record.batch_size, figures.gpu, figures.memory
    is_spread = len(figures.times) > 1
    model_flops = step_flops(contestant.config).model_flops
    return replace(
        record,
        repeats=repeats,
        steps=len(figures.times),
        it_per_s=1.0 / p50,
        examples_per_s=batch / p50,
        tokens_per_s=batch * record.seq_len / p50,
        step_ms=1000.0 * p50,
        step_ms_p10=1000.0 * p10 if is_spread else None,
        step_ms_p90=1000.0 * p90 if is_spread else None,
        step_spread_frac=(p90 - p10) / p50 if is_spread else None,
        forward_ms=figures.forward_ms,
        backward_ms=figures.backward_ms,
        optimizer_ms=sum(part.ms for part in figures.optimizer),
        data_ms=1000.0 * float(np.median(figures.data_times)),
        first_step_s=figures.first_step_s,
        optimizer_parts=figures.optimizer,
        peak_memory_gib=memory.peak,
        reserved_gib=memory.reserved,
        device_gib=memory.device,
        weights_gib=memory.weights,
        gradients_gib=memory.gradients,
        optimizer_gib=memory.optimizer,
        activations_gib=memory.activations,
        alloc_retries=memory.retries,
        gpu_util_frac=gpu.util_frac if gpu else None,
        gpu_util_spread_frac=gpu.util_spread_frac if gpu else None,
        memory_busy_frac=gpu.memory_busy_frac if gpu else None,
        power_w=gpu.power_w if gpu else None,
        gb_per_s=gpu.gb_per_s if gpu else None,
        cpu_util_frac=figures.cpu_util_frac,
        mfu_frac=model_flops / p50 / peak_flops_per_s if record.processes == 1 else None,
        model_flops=model_flops,
        sent_bytes=dict(figures.sent or {}),
        communicating_frac=figures.communicating_frac,
        reason=gpu.reason if gpu is not None else None,
    )


def with_efficiency(records: Sequence[BenchRecord]) -> tuple[BenchRecord, ...]:
    """`records`, those of several processes compared with that of one that has as large a batch, where it is there."""

    def alone(r: BenchRecord) -> float | None:
        same = (
            o.tokens_per_s
            for o in records
            if o.processes == 1
            and (o.preset, o.compiled, o.batch_size * r.processes) == (r.preset, r.compiled, r.batch_size)
        )
        return next(same, None)

    return tuple(
        replace(r, efficiency_frac=r.tokens_per_s / (r.processes * one))
        if r.processes > 1 and r.tokens_per_s and (one := alone(r))
        else r
        for r in records
    )


def peer_record(measured: Measured, machine: Machine) -> PeerBenchRecord:
    """Of a peer."""
    config, figures = measured.contestant.config, measured.figures
    assert measured.contestant.peer is not None
    record = PeerBenchRecord(
        name=measured.contestant.name,
        preset=config.preset,
        batch_size=config.train.batch_size,
        seq_len=config.model.seq_len,
        dtype=str(machine.dtype).removeprefix("torch."),
        not_run_s=measured.not_run_s,
        reason=measured.reason,
    )
    if figures is None:
        return record
    step_s = float(np.median(figures.times))
    return replace(
        record,
        parameters=figures.parameters,
        tokens_per_s=config.train.batch_size * config.model.seq_len / step_s,
        step_ms=1000.0 * step_s,
        peak_memory_gib=figures.memory.peak,
        repeats=measured.repeats,
    )


def max_batch_record(search: Search, found: Found) -> MaxBatchRecord:
    """Of a search that has ended."""
    config, machine = search.config, search.machine
    claimed = claim(config.preset, "largest_batch") if config.model.seq_len == _PAPER_SEQ_LEN else None
    batch = config.train.batch_size
    return MaxBatchRecord(
        preset=config.preset,
        optimizer=config.optim.optimizer,
        seq_len=config.model.seq_len,
        device=str(machine),
        dtype=config.train.dtype,
        attention=machine.attention,
        compiled=search.compiled,
        claim=_figure(claimed) if claimed is not None else None,
        limit_gib=gib(search.limit),
        margin_frac=MARGIN_FRAC,
        by_ledger=found.by_ledger,
        predicted=found.predicted,
        max_batch=found.size,
        is_bounded=search.is_bounded(found),
        steps=found.winner.steps if found.winner else None,
        peak_gib=found.winner.peak_gib if found.winner else None,
        batch_size=batch,
        micro_batch_size=largest_divisor(batch, found.size) if found.size else None,
        probes=tuple(search.probes),
        not_run_s=found.not_run_s,
        reason=found.reason,
    )


def paper_figures(contestant: Contestant) -> tuple[PaperFigure, ...]:
    """All that the paper prints of this preset at this batch size, eager: Table 3 first, then 4, 5 and 7."""
    config = contestant.config
    batch_size, preset = config.train.batch_size, config.preset
    if contestant.compiled or contestant.nproc > 1 or config.model.seq_len != _PAPER_SEQ_LEN:
        return ()
    of_table_3 = {ADAMW_PRESET: "AdamW", MUON_PRESET: "Muon"}.get(preset)
    places = [("Table 3", f"batch {batch_size}", f"{of_table_3} {column}") for column in ("examples/s", "GPU %")]
    same_command = methods.bench(preset, batch_size)
    found = [c for c in CLAIMS if isinstance(c, Claim) and (c.reference in places or c.method == same_command)]
    figures = [_figure(c) for c in found]
    return tuple(f for i, f in enumerate(figures) if _what(f) not in [_what(g) for g in figures[:i]])


def _what(figure: PaperFigure) -> tuple[str, float]:
    return figure.quantity, figure.value


def _figure(claim: Claim) -> PaperFigure:
    return PaperFigure(claim.quantity, claim.value, claim.unit or "", claim.table, claim.row)


def ratios(results: Sequence[BenchRecord], peers: Sequence[PeerBenchRecord]) -> Iterator[RatioRecord]:
    """Everyone over `original`, or where that is not there over the first; Muon over AdamW, compiled over eager, and
    all over every peer; at equal batch sizes.
    """
    presets = [record.preset for record in results]
    base = "original" if "original" in presets else next(iter(presets), None)
    pairs = [*product(results, results)]
    for one, other in pairs:
        if one is other or one.batch_size != other.batch_size or not (one.tokens_per_s and other.tokens_per_s):
            continue
        same_way = (one.compiled, one.processes) == (other.compiled, other.processes)
        is_wanted = (
            (other.preset == base and one.preset != base and same_way)
            or (one.preset == f"{other.preset}-muon" and same_way)
            or (one.preset == other.preset and one.compiled and not other.compiled and one.processes == other.processes)
        )
        if is_wanted:
            ratio = _ratio(one, _name(other), other.tokens_per_s, other.peak_memory_gib)
            paper, paper_memory = (_paper_ratio(one, other, what) for what in (_SPEEDS, ("vram",)))
            yield replace(ratio, paper=paper, paper_memory=paper_memory)
    for one, peer in product(results, peers):
        is_same_model = peer.name.startswith("hf-llama") or peer.preset == one.preset
        if one.batch_size == peer.batch_size and one.tokens_per_s and peer.tokens_per_s and is_same_model:
            yield _ratio(one, peer.name, peer.tokens_per_s, peer.peak_memory_gib)


def _paper_ratio(one: BenchRecord, other: BenchRecord, quantities: Sequence[str]) -> float | None:
    """Of the first of `quantities` that the paper prints of both, in the same table."""
    pairs = product(one.claims, other.claims)
    same = [(a, b) for a, b in pairs if (a.quantity, a.table) == (b.quantity, b.table) and a.quantity in quantities]
    return same[0][0].value / same[0][1].value if same else None


def _ratio(one: BenchRecord, over: str, tokens_per_s: float, memory: float | None) -> RatioRecord:
    assert one.tokens_per_s is not None
    peak = one.peak_memory_gib / memory if one.peak_memory_gib and memory else None
    return RatioRecord(_name(one), over, one.batch_size, one.tokens_per_s / tokens_per_s, peak, None)


def _name(record: BenchRecord) -> str:
    return record.name
