"""The tables of `train` and `eval`: every figure, its unit, and n/a for what could not be had."""

import dataclasses

import pytest

from colakit.records.run import OptimizerPart, RunSummary
from colakit.report.runs import sample_text, summary_table
from colakit.report.tables import stdout_console

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
    processes=1,
    strategy=None,
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
    assert "processes  2, zero1" in shown(summary_table(dataclasses.replace(SUMMARY, processes=2, strategy="zero1")))
    summary = dataclasses.replace(SUMMARY, interrupted=True, nan_count=3, **nothing)
    lines = shown(summary_table(summary))
    assert lines[0] == "interrupted run"
    expected = ["steps  1,234, 3 skipped", "bits per byte  n/a", "gzip -9, same text  n/a", "optimizer  n/a"]
    assert set(expected) <= set(lines)


def test_brackets_are_printed_as_they_stand(shown, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    """rich would take [red] for a colour and drop it, and [/red] alone for an error."""
    odd = "runs/[red]a[/red] [/b] :smile:"
    lines = shown(summary_table(dataclasses.replace(SUMMARY, preset="[bold]", run_dir=odd, data_fingerprint="[/i]")))
    assert {"preset  [bold]", f"folder  {odd}", "data  [/i]"} <= set(lines)
    stdout_console().print(sample_text(dataclasses.replace(SUMMARY, prompt="x[red]", sample="[/b]y")))
    assert capsys.readouterr().out == "prompt\nx[red]\nsample\n[/b]y\n"


def test_what_a_terminal_would_obey_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    stdout_console().print(sample_text(dataclasses.replace(SUMMARY, prompt="a\x1b[2J b\n", sample="naïve ✓\x00")))
    assert capsys.readouterr().out == "prompt\na\\x1b[2J b\n\nsample\nnaïve ✓\\x00\n"
