"""The tables of `train`, `eval` and `bench`: every figure, its unit, and n/a for what could not be had."""

import dataclasses
import re

import pytest
from rich.table import Table

from colakit.records.bench import BenchRecord, OptimizerBenchRecord
from colakit.records.run import EvalRecord, OptimizerPart, RunSummary
from colakit.report.runs import bench_table, eval_table, optimizer_notes, optimizer_table, sample_text, summary_table
from colakit.report.tables import print_table, stdout_console

SUMMARY = RunSummary(
    preset="cola-fan",
    run_dir="runs/cola-fan-20260101-120000",
    steps=1234,
    interrupted=False,
    first_loss=9.12345,
    last_loss=4.56789,
    val_loss=4.67891,
    bits_per_byte=1.73219,
    gzip_bits_per_byte=2.81239,
    accuracy=0.34567,
    tokens_seen=5_678_901,
    nan_count=0,
    parameters=88_368_000,
    train_s=321.06,
    tokens_per_s=17_654.4,
    data_wait_frac=0.001,
    epochs={"data": 0.5},
    optimizer=(
        OptimizerPart("muon", parameters=45_675_264, ms=1234.56, flops=204_580_700_472),
        OptimizerPart("adamw", parameters=47_000_000, ms=23.45, flops=0),
    ),
    data_fingerprint="0123abcd",
    prompt="once upon",
    sample=" a time",
)
EVALUATION = EvalRecord(
    step=2345,
    val_loss=3.45678,
    perplexity=1031.713,
    bits_per_byte=1.23456,
    accuracy=0.45678,
    tokens=262_144,
    text_bytes=999_999,
    eval_s=1.5,
)
BENCH = BenchRecord(
    preset="cola-fan",
    batch_size=16,
    seq_len=768,
    device="CPU, float32",
    dtype="float32",
    attention="sdpa",
    steps=11,
    it_per_s=3.14159,
    examples_per_s=50.26548,
    tokens_per_s=38_603.4,
    step_ms=318.31,
    optimizer=(OptimizerPart("muon", 10, 20.0, 30), OptimizerPart("adamw", 10, 11.831, 0)),
    vram_gib=5.4321,
    rss_gib=1.2345,
    reason=None,
)


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Print a table as the commands do, and give its lines with the space between columns made one."""

    def show(table: Table) -> list[str]:
        print_table(table)
        lines = [re.sub(r"\s{2,}", "  ", line.strip()) for line in capsys.readouterr().out.splitlines()]
        return [line for line in lines if line and not set(line) <= set("─ ")]

    return show


def test_summary_has_every_figure_with_its_unit(shown) -> None:  # type: ignore[no-untyped-def]
    assert shown(summary_table(SUMMARY)) == [
        "run",
        "preset  cola-fan",
        "folder  runs/cola-fan-20260101-120000",
        "parameters  88,368,000 (88.4M)",
        "steps  1,234",
        "first loss  9.1235 nats/token",
        "last loss  4.5679 nats/token",
        "validation loss  4.6789 nats/token",
        "bits per byte  1.732",
        "gzip -9, same text  2.812",
        "accuracy  0.346",
        "tokens seen  5,678,901",
        "time  321.1 s (17,654 tokens/s in training steps)",
        "data wait  0.10 % of the steps' time",
        "epochs  0.5",
        "optimizer  Muon 1234.6 ms (205 GFLOP), AdamW 23.4 ms a step",
        "data  0123abcd",
    ]


def test_summary_says_interrupted_skipped_and_not_known(shown) -> None:  # type: ignore[no-untyped-def]
    nothing = {"bits_per_byte": None, "gzip_bits_per_byte": None, "optimizer": ()}
    summary = dataclasses.replace(SUMMARY, interrupted=True, nan_count=3, **nothing)
    lines = shown(summary_table(summary))
    assert lines[0] == "interrupted run"
    expected = ["steps  1,234, 3 skipped", "bits per byte  n/a", "gzip -9, same text  n/a", "optimizer  n/a"]
    assert set(expected) <= set(lines)


def test_evaluation_has_every_figure_with_its_unit(shown) -> None:  # type: ignore[no-untyped-def]
    assert shown(eval_table(EVALUATION)) == [
        "held-out split, model of step 2,345",
        "validation loss  3.4568 nats/token",
        "perplexity  1,031.71",
        "bits per byte  1.2346",
        "accuracy  0.4568",
        "tokens  262,144",
    ]
    assert "bits per byte  n/a" in shown(eval_table(dataclasses.replace(EVALUATION, bits_per_byte=None)))


def test_bench_has_every_figure_with_its_unit(shown) -> None:  # type: ignore[no-untyped-def]
    nothing = dict.fromkeys(("it_per_s", "examples_per_s", "tokens_per_s", "step_ms", "vram_gib", "rss_gib"))
    failed = dataclasses.replace(BENCH, batch_size=4096, reason="out of memory", optimizer=(), **nothing)
    assert shown(bench_table([BENCH, failed])) == [
        "cola-fan: CPU, float32, attention sdpa, seq_len 768, 11 steps",
        "batch size  it/s  examples/s  tokens/s  ms/step  optimizer, %  VRAM GiB  RSS GiB  note",
        "16  3.142  50.27  38,603  318.3  10.0  5.43  1.23",
        "4096  n/a  n/a  n/a  n/a  n/a  n/a  n/a  out of memory",
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


def test_brackets_are_printed_as_they_stand(shown, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    """rich would take [red] for a colour and drop it, and [/red] alone for an error."""
    odd = "runs/[red]a[/red] [/b] :smile:"
    lines = shown(summary_table(dataclasses.replace(SUMMARY, preset="[bold]", run_dir=odd, data_fingerprint="[/i]")))
    assert {"preset  [bold]", f"folder  {odd}", "data  [/i]"} <= set(lines)
    lines = shown(bench_table([dataclasses.replace(BENCH, preset="[bold]", device="[/x]", reason="[/red] gone")]))
    assert lines[0].startswith("[bold]: [/x], attention sdpa")
    assert lines[-1].endswith("[/red] gone")
    stdout_console().print(sample_text(dataclasses.replace(SUMMARY, prompt="x[red]", sample="[/b]y")))
    assert capsys.readouterr().out == "prompt\nx[red]\nsample\n[/b]y\n"


def test_what_a_terminal_would_obey_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    stdout_console().print(sample_text(dataclasses.replace(SUMMARY, prompt="a\x1b[2J b\n", sample="naïve ✓\x00")))
    assert capsys.readouterr().out == "prompt\na\\x1b[2J b\n\nsample\nnaïve ✓\\x00\n"
