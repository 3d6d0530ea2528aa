"""From measured times to records: rates, shares, ratios, and the paper's figure where it prints one."""

from dataclasses import replace
from typing import Any

import pytest

from colakit.analysis.flops import step_flops
from colakit.bench.contestant import Contestant
from colakit.bench.report import bench_record, paper_figures, peer_record, ratios
from colakit.bench.study import Measured
from colakit.config.load import resolve
from colakit.nvml import GpuUse
from colakit.records.bench import BenchRecord, PaperFigure, PeerBenchRecord
from tests.bench.tiny import CPU, contestant, figures

PEAK = 1e9


def full(preset: str, size: int = 16, *sets: str, compiled: bool = False) -> Contestant:
    return Contestant(resolve(preset, sets=[f"train.batch_size={size}", *sets]).config, compiled=compiled)


def test_rates_follow_from_the_median_step() -> None:
    of = contestant("cola", "train.batch_size=6", "train.micro_batch_size=2")
    times = (0.5, 0.4, 9.0, 0.6, 0.5)
    record = bench_record(Measured(of, figures(*times), repeats=5), CPU, PEAK)
    assert (record.it_per_s, record.examples_per_s, record.tokens_per_s) == pytest.approx((2.0, 12.0, 120.0))
    assert (record.step_ms, record.step_ms_p10, record.step_ms_p90) == pytest.approx((500.0, 440.0, 5640.0))
    assert record.step_spread_frac == pytest.approx(10.4)
    assert record.mfu_frac == pytest.approx(step_flops(of.config).model_flops / 0.5 / PEAK)
    assert (record.repeats, record.steps, record.micro_batch_size, record.data_ms) == (5, 5, 2, 1.0)
    assert (record.peak_memory_gib, record.device_gib, record.reserved_gib) == (2.0, 3.0, None)
    assert (record.device, record.dtype, record.compiled, record.reason) == ("CPU, float32", "float32", False, None)


def test_utilisation_leaves_out_what_is_computed_again() -> None:
    of = contestant("cola-m")
    record, flops = bench_record(Measured(of, figures(0.5)), CPU, PEAK), step_flops(of.config)
    assert flops.hardware_flops > flops.model_flops == record.model_flops
    assert record.mfu_frac == pytest.approx(flops.model_flops / 0.5 / PEAK)


def test_one_step_has_no_spread() -> None:
    record = bench_record(Measured(contestant(), figures(0.5)), CPU, PEAK)
    assert record.step_ms == 500.0
    assert (record.step_ms_p10, record.step_ms_p90, record.step_spread_frac) == (None, None, None)


def test_what_nvml_says_is_handed_on_with_what_it_refused() -> None:
    gpu = GpuUse(0.9, 0.1, 0.5, 300.0, None, 2**30, "GPM: Not Supported")
    record = bench_record(Measured(contestant(), figures(gpu=gpu)), CPU, PEAK)
    assert (record.gpu_util_frac, record.gpu_util_spread_frac, record.memory_busy_frac) == (0.9, 0.1, 0.5)
    assert (record.power_w, record.gb_per_s, record.reason) == (300.0, None, "GPM: Not Supported")


def test_who_was_not_measured_has_a_reason_and_no_figure() -> None:
    for measured in (
        Measured(contestant(), not_run_s=12.5, reason="not run"),
        Measured(contestant(), figures(skipped=2)),
    ):
        record = bench_record(measured, CPU, PEAK)
        assert record.reason
        assert (record.it_per_s, record.step_ms, record.mfu_frac, record.peak_memory_gib) == (None,) * 4
    assert record.reason == "2 updates skipped: loss or gradient not finite; lower optim.lr"


def test_the_papers_figures_stand_beside_their_own_row() -> None:
    def found(*of: Any) -> list[tuple[str, float, str]]:
        return [(f.quantity, f.value, f.table) for f in paper_figures(full(*of))]

    assert paper_figures(full("original"))[0] == PaperFigure("it_per_s", 3.0, "it/s", "Table 4", "Original")
    assert found("original") == [("it_per_s", 3.0, "Table 4"), ("vram", 14.0, "Table 4")]
    # Tables that do not agree: 156.8 examples a second are 9.8 steps.
    assert found("cola-smollm2", 16) == [
        *[("examples_per_s", 156.8, "Table 3"), ("gpu_util", 98.0, "Table 3")],
        *[("it_per_s", 6.67, "Table 4"), ("vram", 11.0, "Table 4")],
    ]
    assert found("cola-smollm2-muon", 32) == [
        *[("examples_per_s", 278.4, "Table 3"), ("gpu_util", 78.0, "Table 3"), ("gpu_util", 75.0, "Table 7")],
        *[("step_ms", 192.0, "Table 7"), ("bandwidth", 754.0, "Table 7"), ("tokens_per_s", 5333.0, "Table 7")],
    ]
    assert found("cola-smollm2-muon", 128) == [("examples_per_s", 1228.8, "Table 3"), ("gpu_util", 86.0, "Table 3")]
    assert not found("original", 8)
    assert not found("cola-smollm2", 16, "model.seq_len=512")
    assert not found("cola-smollm2", 12)
    assert paper_figures(full("original", compiled=True)) == ()
    headline = bench_record(Measured(full("cola-smollm2-muon", 32)), CPU, PEAK).claim
    assert headline == PaperFigure("examples_per_s", 278.4, "examples/s", "Table 3", "batch 32")


def record(preset: str, speed: float, memory: float | None = None, *, size: int = 16, **changes: object) -> BenchRecord:
    of = full(preset, size)
    made = bench_record(Measured(of), CPU, PEAK)
    return replace(made, tokens_per_s=speed, peak_memory_gib=memory, **changes)  # type: ignore[arg-type]


def test_ratios_are_to_the_original_to_adamw_to_eager_and_to_peers() -> None:
    results = [
        record("cola", 250.0, 2.0),
        record("original", 100.0, 4.0),
        record("cola", 300.0, None, compiled=True, claims=()),
        record("cola-smollm2", 400.0),
        record("cola-smollm2-muon", 300.0),
        record("cola", 999.0, size=8),
    ]
    peers = [
        PeerBenchRecord("hf-llama", "original", 16, 1024, "float32", tokens_per_s=50.0, peak_memory_gib=8.0),
        PeerBenchRecord("torch-muon", "cola-smollm2-muon", 16, 1024, "float32", tokens_per_s=3.0),
        PeerBenchRecord("hf-llama", "original", 8, 1024, "float32"),
    ]
    everyone = list(ratios(results, peers))
    found = {(r.of, r.over): (r.tokens_per_s, r.peak_memory, r.paper) for r in everyone}
    assert {(r.of, r.over): r.paper_memory for r in everyone if r.paper_memory} == {
        ("cola", "original"): pytest.approx(12 / 14),
        ("cola-smollm2", "original"): pytest.approx(11 / 14),
        ("cola-smollm2-muon", "original"): pytest.approx(11 / 14),
        ("cola-smollm2-muon", "cola-smollm2"): 1.0,
    }
    assert found == {
        ("cola", "original"): (2.5, 0.5, 5.0 / 3.0),
        ("cola-smollm2", "original"): (4.0, None, pytest.approx(6.67 / 3.0)),
        ("cola-smollm2-muon", "original"): (3.0, None, pytest.approx(5.2 / 3.0)),
        ("cola, compiled", "cola"): (1.2, None, None),
        ("cola-smollm2-muon", "cola-smollm2"): (0.75, None, pytest.approx(131.2 / 156.8)),
        ("original", "hf-llama"): (2.0, 0.5, None),
        ("cola", "hf-llama"): (5.0, 0.25, None),
        ("cola, compiled", "hf-llama"): (6.0, None, None),
        ("cola-smollm2", "hf-llama"): (8.0, None, None),
        ("cola-smollm2-muon", "hf-llama"): (6.0, None, None),
        ("cola-smollm2-muon", "torch-muon"): (100.0, None, None),
    }


def test_where_there_is_no_original_ratios_are_to_the_first() -> None:
    results = [record("cola-smollm2", 100.0, 4.0), record("cola-m", 80.0, 1.0), record("cola-fan", 90.0)]
    found = [(r.of, r.over, r.tokens_per_s, r.peak_memory) for r in ratios(results, [])]
    assert found == [
        ("cola-m", "cola-smollm2", 0.8, 0.25),
        ("cola-fan", "cola-smollm2", 0.9, None),
    ]
    assert not list(ratios([], []))


def test_a_peers_record_names_its_shape() -> None:
    of = replace(contestant("original", "train.batch_size=4"), peer="hf-llama")
    found = peer_record(Measured(of, figures(0.5, 0.5, 2.0), repeats=3), CPU)
    assert (found.name, found.preset, found.batch_size, found.parameters) == ("hf-llama", "original", 4, 1234)
    assert (found.step_ms, found.tokens_per_s, found.peak_memory_gib, found.repeats) == (500.0, 80.0, 2.0, 3)
    missing = peer_record(Measured(of, reason="out of memory"), CPU)
    assert (missing.step_ms, missing.reason) == (None, "out of memory")
