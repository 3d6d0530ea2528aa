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
from colakit.paper.claims import CLAIMS, Claim, claim
from colakit.paper.optimizers import ADAMW_PRESET, MUON_PRESET
from colakit.records.bench import BenchRecord, MaxBatchRecord, PaperFigure, PeerBenchRecord, RatioRecord
from colakit.units import gib

_PAPER_BATCH_SIZE = 16
"""Of Tables 4 and 5."""
_PAPER_SEQ_LEN = 1024


def bench_record(measured: Measured, machine: Machine, peak_flops_per_s: float) -> BenchRecord:
    """Of one of colakit's own contestants."""
    config = measured.contestant.config
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
        claim=paper_figure(measured.contestant),
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
    return replace(
        record,
        repeats=repeats,
        steps=len(figures.times),
        it_per_s=1.0 / p50,
        examples_per_s=batch / p50,
        tokens_per_s=batch * record.seq_len / p50,
        step_ms=1000.0 * p50,
        step_ms_p10=1000.0 * p10,
        step_ms_p90=1000.0 * p90,
        step_spread_frac=(p90 - p10) / p50,
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
        mfu_frac=step_flops(contestant.config).model_flops / p50 / peak_flops_per_s,
        reason=gpu.reason if gpu is not None else None,
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
        compiled=machine.compiles,
        claim=_figure(claimed) if claimed is not None else None,
        limit_gib=gib(search.limit),
        margin_frac=MARGIN_FRAC,
        by_ledger=found.by_ledger,
        predicted=found.predicted,
        max_batch=found.size,
        steps=found.winner.steps if found.winner else None,
        peak_gib=found.winner.peak_gib if found.winner else None,
        batch_size=batch,
        micro_batch_size=largest_divisor(batch, found.size) if found.size else None,
        probes=tuple(search.probes),
        not_run_s=found.not_run_s,
        reason=found.reason,
    )


def paper_figure(contestant: Contestant) -> PaperFigure | None:
    """What the paper prints of this preset at this batch size, eager: of Table 3's two all sizes, of others 16."""
    config = contestant.config
    batch_size, preset = config.train.batch_size, config.preset
    if contestant.compiled or config.model.seq_len != _PAPER_SEQ_LEN:
        return None
    found: Claim | None = None
    if preset in (ADAMW_PRESET, MUON_PRESET):
        column = f"{'Muon' if preset == MUON_PRESET else 'AdamW'} examples/s"
        place = ("Table 3", f"batch {batch_size}", column)
        found = next((c for c in CLAIMS if isinstance(c, Claim) and c.reference == place), None)
    elif batch_size == _PAPER_BATCH_SIZE:
        found = claim(preset, "it_per_s")
    if found is None:
        return None
    return _figure(found)


def _figure(claim: Claim) -> PaperFigure:
    return PaperFigure(claim.quantity, claim.value, claim.unit or "", claim.table, claim.row)


def ratios(results: Sequence[BenchRecord], peers: Sequence[PeerBenchRecord]) -> Iterator[RatioRecord]:
    """Everyone over `original`, Muon over AdamW, compiled over eager, and over every peer; at equal batch sizes."""
    pairs = [*product(results, results)]
    for one, other in pairs:
        if one is other or one.batch_size != other.batch_size or not (one.tokens_per_s and other.tokens_per_s):
            continue
        same_way = one.compiled == other.compiled
        is_wanted = (
            (other.preset == "original" and one.preset != "original" and same_way)
            or (one.preset == f"{other.preset}-muon" and same_way)
            or (one.preset == other.preset and one.compiled and not other.compiled)
        )
        if is_wanted:
            paper = _paper_ratio(one.claim, other.claim)
            yield _ratio(one, _name(other), other.tokens_per_s, other.peak_memory_gib, paper)
    for one, peer in product(results, peers):
        is_same_model = peer.name.startswith("hf-llama") or peer.preset == one.preset
        if one.batch_size == peer.batch_size and one.tokens_per_s and peer.tokens_per_s and is_same_model:
            yield _ratio(one, peer.name, peer.tokens_per_s, peer.peak_memory_gib, None)


def _paper_ratio(one: PaperFigure | None, other: PaperFigure | None) -> float | None:
    return one.value / other.value if one and other and one.quantity == other.quantity else None


def _ratio(one: BenchRecord, over: str, tokens_per_s: float, memory: float | None, paper: float | None) -> RatioRecord:
    assert one.tokens_per_s is not None
    peak = one.peak_memory_gib / memory if one.peak_memory_gib and memory else None
    return RatioRecord(_name(one), over, one.batch_size, one.tokens_per_s / tokens_per_s, peak, paper)


def _name(record: BenchRecord) -> str:
    return f"{record.preset}, compiled" if record.compiled else record.preset
