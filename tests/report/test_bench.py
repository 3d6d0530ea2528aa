"""The tables of `bench`: every figure under its head, and n/a for what could not be had."""

import dataclasses

from colakit.host import describe_machine
from colakit.records.bench import (
    BenchRecord,
    BenchReport,
    ComparisonRecord,
    OptimizerBenchRecord,
    PaperFigure,
    PeerBenchRecord,
    RatioRecord,
)
from colakit.records.machine import PeakRecord
from colakit.report.bench import (
    bench_notes,
    comparison_table,
    memory_table,
    optimizer_notes,
    optimizer_table,
    ratio_table,
    sharing_table,
    speed_table,
    use_table,
)

WHO = BenchRecord(
    preset="cola-fan",
    optimizer="adamw",
    batch_size=16,
    micro_batch_size=16,
    seq_len=1024,
    device="CPU, float32",
    dtype="float32",
    attention="sdpa",
    compiled=False,
    claim=PaperFigure("it_per_s", 6.24, "it/s", "Table 4", "CoLA + FANformer + SmolLM2"),
    claims=(
        PaperFigure("it_per_s", 6.24, "it/s", "Table 4", "CoLA + FANformer + SmolLM2"),
        PaperFigure("vram", 11.2, "GB", "Table 4", "CoLA + FANformer + SmolLM2"),
        PaperFigure("gpu_util", 94.0, "%", "Table 7", "GPU utilisation"),
        PaperFigure("step_ms", 160.0, "ms", "Table 7", "time per batch (ms)"),
        PaperFigure("bandwidth", 876.0, "GB/s", "Table 7", "bandwidth (GB/s)"),
    ),
)
MEASURED = dataclasses.replace(
    WHO,
    repeats=5,
    steps=7,
    it_per_s=3.14159,
    examples_per_s=50.26548,
    tokens_per_s=51_471.9,
    step_ms=318.31,
    step_ms_p10=301.2,
    step_ms_p90=352.7,
    step_spread_frac=0.1618,
    forward_ms=101.23,
    backward_ms=202.34,
    optimizer_ms=14.56,
    data_ms=0.12,
    peak_memory_gib=5.4321,
    device_gib=6.5432,
    weights_gib=0.3291,
    gradients_gib=0.3292,
    optimizer_gib=0.6583,
    activations_gib=4.1111,
    cpu_util_frac=0.987,
    mfu_frac=0.4321,
)
ON_GPU = dataclasses.replace(
    MEASURED,
    preset="cola",
    compiled=True,
    claim=None,
    claims=(),
    reserved_gib=7.1234,
    alloc_retries=2,
    gpu_util_frac=0.9531,
    gpu_util_spread_frac=0.0123,
    memory_busy_frac=0.6543,
    power_w=412.3,
    gb_per_s=1801.4,
)
MISSING = dataclasses.replace(WHO, batch_size=128, not_run_s=1234.5, reason="not run, would take 1,234 s")
PEER = PeerBenchRecord("hf-llama", "original", 16, 1024, "float32", 234_547_968, 20_000.4, 819.2, 9.8765, repeats=5)
RATIOS = (
    RatioRecord("cola", "original", 16, 2.468, 0.5432, 1.6667, 0.8571),
    RatioRecord("cola, compiled", "hf-llama", 16, 4.321, None, None),
)
REPORT = BenchReport(
    machine=dataclasses.replace(describe_machine(), products="MKL"),
    peak=PeakRecord("cpu", "float32", 1.66e11, 1.1e10),
    budget_s=300.0,
    seconds=123.0,
    results=(MEASURED, ON_GPU, MISSING),
    peers=(PEER,),
    ratios=RATIOS,
)


def test_speed(shown) -> None:  # type: ignore[no-untyped-def]
    assert shown(speed_table(REPORT)) == [
        "speed: CPU, float32, attention sdpa",
        "batch  tokens  it/s  paper  examples/s  tokens/s  ms/step  p10 … p90  "
        "forward  backward  optimizer  data  MFU, %  turns",
        "cola-fan  16  1024  3.142  6.24 it/s, 160 ms  50.27  51,472  318.3  301 … 353  "
        "101.2  202.3  14.6  0.1  43.2  5",
        "cola, compiled  16  1024  3.142  50.27  51,472  318.3  301 … 353  101.2  202.3  14.6  0.1  43.2  5",
        "cola-fan  128  1024  n/a  6.24 it/s, 160 ms  n/a  n/a  n/a  n/a  n/a  n/a  n/a  n/a  n/a  0",
        "hf-llama  16  1024  1.221  19.53  20,000  819.2  5",
    ]


def test_memory_and_use(shown) -> None:  # type: ignore[no-untyped-def]
    assert shown(memory_table(REPORT)) == [
        "memory, GiB",
        "batch  peak  paper  reserved  device  weights  gradients  optimizer  activations  allocator retries",
        "cola-fan  16  5.432  11.2 GB  n/a  6.543  0.329  0.329  0.658  4.111  n/a",
        "cola, compiled  16  5.432  7.123  6.543  0.329  0.329  0.658  4.111  2",
        "cola-fan  128  n/a  11.2 GB  n/a  n/a  n/a  n/a  n/a  n/a  n/a",
        "hf-llama  16  9.877",
    ]
    assert shown(use_table(REPORT)) == [
        "use of the machine",
        "batch  GPU, %  paper  ± %  GPU memory busy, %  W  GB/s  paper  CPU, %  spread of steps, %",
        "cola-fan  16  n/a  94 %  n/a  n/a  n/a  n/a  876 GB/s  99  16.2",
        "cola, compiled  16  95.3  1.2  65.4  412  1801  99  16.2",
        "cola-fan  128  n/a  94 %  n/a  n/a  n/a  n/a  876 GB/s  n/a  n/a",
    ]


def test_ratios_and_notes(shown) -> None:  # type: ignore[no-untyped-def]
    assert shown(ratio_table(REPORT.ratios)) == [
        "ratios, all of this run",
        "over  batch  tokens/s  paper  peak memory  paper",
        "cola  original  16  2.47  1.67  0.54  0.86",
        "cola, compiled  hf-llama  16  4.32  n/a",
    ]
    machine = REPORT.machine
    assert bench_notes(REPORT) == [
        "cola-fan, batch 128: not run, would take 1,234 s.",
        f"Measured on {machine.cpu}, {machine.usable_cpus} CPUs; torch {machine.packages['torch']}, Python "
        f"{machine.python}.",
        "MFU is of 0.166 TFLOP/s, what a square product reaches here in float32. The paper's figures are of an RTX "
        "4090: compare ratios.",
    ]


def test_that_a_peer_multiplies_otherwise_is_told() -> None:
    def notes(products: str, *peers: PeerBenchRecord) -> list[str]:
        machine = dataclasses.replace(REPORT.machine, products=products)
        return bench_notes(dataclasses.replace(REPORT, machine=machine, peers=peers))

    assert any("oneDNN" in note for note in notes("oneDNN", PEER))
    assert not any("oneDNN" in note for note in notes("MKL", PEER))
    assert not any("oneDNN" in note for note in notes("oneDNN", dataclasses.replace(PEER, step_ms=None)))


def test_reasons_stand_in_the_order_of_the_tables_and_unsteady_steps_are_told() -> None:
    results = (
        dataclasses.replace(MISSING, reason="b"),
        dataclasses.replace(MEASURED, reason="a", step_spread_frac=0.51),
        dataclasses.replace(MISSING, batch_size=64, reason="b"),
        dataclasses.replace(ON_GPU, step_spread_frac=0.49),
    )
    notes = bench_notes(dataclasses.replace(REPORT, results=results, peers=()))
    assert notes[:2] == ["cola-fan, batch 128; cola-fan, batch 64: b.", "cola-fan, batch 16: a."]
    assert notes[2].startswith("cola-fan, batch 16: steps differ by more than 50 %")
    assert len(notes) == 5
    busy = dataclasses.replace(MEASURED, cpu_util_frac=0.69, step_spread_frac=None)
    few = dataclasses.replace(MEASURED, repeats=2)
    for device, told in (("cpu", "cola-fan, batch 16: steps differ"), ("cuda", "Fewer than 3 turns")):
        peak = dataclasses.replace(REPORT.peak, device=device)
        first, *_ = bench_notes(dataclasses.replace(REPORT, results=(busy, few), peers=(), peak=peak))
        assert first.startswith(told)


def test_before_and_after(shown) -> None:  # type: ignore[no-untyped-def]
    records = [
        ComparisonRecord("cola", 16, 1024, 1000.0, 900.0, 0.9, 1.1, is_worse=True),
        ComparisonRecord("cola-fan", 8, 512, 2000.4, None, None, None, is_worse=True),
    ]
    assert shown(comparison_table(records)) == [
        "after over before",
        "batch  tokens  tokens/s before  after  speed  peak memory",
        "cola  16  1024  1,000  900  0.900  1.100  worse",
        "cola-fan  8  512  2,000  n/a  n/a  n/a  not measured again",
    ]


OPTIMIZERS = OptimizerBenchRecord(
    preset="cola-fan",
    device="CPU, float32",
    dtype="float32",
    matrices=216,
    parameters=45_675_264,
    repeats=5,
    muon_ms=1000.0,
    textbook_ms=1654.32,
    torch_muon_ms=62_000.0,
    adamw_ms=41.5,
    textbook_over_muon=1.65432,
    torch_muon_over_muon=62.0,
    muon_over_adamw=24.1,
    muon_flops=156_866_298_168,
    state_bytes=182_701_056,
    workspace_bytes=2**26,
    reason="guessed",
)


def test_optimizers_beside_each_other(shown) -> None:  # type: ignore[no-untyped-def]
    assert shown(optimizer_table(OPTIMIZERS)) == [
        "Optimizers on the 216 matrices of cola-fan: CPU, float32, 5 repeats",
        "ms/step  × Muon's",
        "Muon (float32)  1,000.0  1.00",
        "Muon, textbook form  1,654.3  1.65",
        "torch.optim.Muon  62,000.0  62.00",
        "AdamW  41.5  0.04",
    ]
    assert optimizer_notes(OPTIMIZERS) == [
        "Muon: 156.9 GFLOP of Newton–Schulz, 157 GFLOP/s.",
        "Its state is 1× the 45,675,264 parameters, 0.170 GiB; a step's workspace 0.062 GiB.",
        "guessed.",
    ]
    assert len(optimizer_notes(dataclasses.replace(OPTIMIZERS, reason=None))) == 2
    assert optimizer_notes(dataclasses.replace(OPTIMIZERS, repeats=4))[-1].startswith("Fewer than 5 repeats")


def test_the_table_of_several_has_both_rates_and_muons_bytes_over_adamws(shown) -> None:  # type: ignore[no-untyped-def]
    muon = dataclasses.replace(
        MEASURED,
        preset="cola-fan-muon",
        optimizer="muon",
        processes=2,
        strategy="fsdp2",
        threads=3,
        it_per_s=2.0,
        tokens_per_s=65_536.0,
        efficiency_frac=0.9,
        optimizer_gib=0.5,
        sent_bytes={"all-gather": 2_000_000, "all-to-all": 1_000_000},
        communicating_frac=0.25,
    )
    (note,) = (n for n in bench_notes(dataclasses.replace(REPORT, results=(muon,))) if n.startswith("Each process"))
    assert f"Each process has 3 of the {REPORT.machine.usable_cpus} CPUs, alone too." in note
    changes = {"preset": "cola-fan-muon by AdamW", "optimizer": "adamw", "efficiency_frac": None}
    adamw = dataclasses.replace(muon, **changes, sent_bytes={"all-gather": 2_000_000})
    title, header, *rows = shown(sharing_table(dataclasses.replace(REPORT, results=(MEASURED, muon, adamw))))
    assert title == "several processes"
    assert header.startswith("batch  it/s each  it/s, sum")
    assert rows == [
        "cola-fan-muon, fsdp2 x 2  16  2.000  4.000  65,536  90  3.00  1.50  25  512.00",
        "cola-fan-muon by AdamW, fsdp2 x 2  16  2.000  4.000  65,536  n/a  2.00  25  512.00",
    ]
