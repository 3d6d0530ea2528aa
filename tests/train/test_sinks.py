"""Console lines and the bar, JSON lines."""

import dataclasses
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from colakit.records.run import EvalRecord, StepRecord
from colakit.train.sinks import ConsoleSink, JsonlSink


def make_step(step: int = 3, loss: float = 2.5, skipped: bool = False, nan_count: int = 0) -> StepRecord:
    return StepRecord(
        step=step,
        loss=loss,
        accuracy=0.25,
        bits_per_byte=3.0,
        lr=1e-3,
        grad_norm=0.7,
        tokens=4000,
        step_ms=500.0,
        data_ms=0.5,
        skipped=skipped,
        nan_count=nan_count,
    )


def make_evaluation(bits: float | None = 2.0) -> EvalRecord:
    return EvalRecord(
        step=3,
        val_loss=2.25,
        perplexity=9.49,
        bits_per_byte=bits,
        accuracy=0.5,
        tokens=1234,
        text_bytes=4000,
        eval_s=1.0,
    )


def console_output(*, terminal: bool, records: list[StepRecord | EvalRecord], max_steps: int = 40) -> str:
    stream = io.StringIO()
    sink = ConsoleSink(Console(file=stream, force_terminal=terminal, width=120), max_steps)
    for record in records:
        if isinstance(record, StepRecord):
            sink.step(record)
        else:
            sink.evaluation(record)
    sink.close()
    return stream.getvalue()


def test_plain_lines_without_a_terminal() -> None:
    text = console_output(terminal=False, records=[make_step(i) for i in range(1, 11)] + [make_evaluation()])
    lines = text.splitlines()
    # max_steps 40: the first step and every fourth.
    assert [line.split("  ")[0] for line in lines[:3]] == ["step 1/40", "step 4/40", "step 8/40"]
    assert "loss 2.500  2.00 it/s  8,000 tokens/s  ETA 16 s" in lines[2]
    assert "validation loss 2.2500  bits/byte 2.000  accuracy 0.500  (1,234 tokens" in lines[3]
    assert "\x1b" not in text


def test_a_terminal_gets_a_bar_and_the_evaluations() -> None:
    text = console_output(terminal=True, records=[make_step(), make_evaluation()])
    assert "3/40" in text
    assert "2.00 it/s" in text
    assert "validation loss 2.2500" in text


def test_skipped_steps_and_missing_figures_are_said() -> None:
    skipped = dataclasses.replace(
        make_step(loss=math.nan, skipped=True, nan_count=1), skip_reason="not finite, first in x"
    )
    records = [skipped, make_evaluation(bits=None)]
    text = console_output(terminal=False, records=records)
    assert "step 3: update skipped, not finite, first in x (loss nan, gradient norm 0.7)" in text
    assert "bits/byte n/a" in text


def test_a_flush_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    path = tmp_path / "metrics.jsonl"
    monkeypatch.setattr("os.fsync", lambda _: synced.append(path.read_bytes()))
    sink = JsonlSink(path)
    sink.step(make_step())
    assert not synced
    sink.flush()
    assert synced == [path.read_bytes()]
    assert b'"step": 3' in synced[0]
    sink.close()


def test_json_lines_are_strict_json_and_flushed(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.step(make_step(loss=math.nan, skipped=True, nan_count=1))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()  # before close
    record = json.loads(line, parse_constant=lambda name: (_ for _ in ()).throw(AssertionError(name)))
    assert record["loss"] is None
    assert record["kind"] == "step"
    assert record["skipped"] is True
    sink.close()
