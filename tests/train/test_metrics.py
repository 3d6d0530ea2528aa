"""``metrics.jsonl`` read again: cut behind a step, whatever a kill left at its end."""

import math
from pathlib import Path

import pytest

from colakit.records.base import to_json
from colakit.records.run import EvalRecord, StepRecord
from colakit.train.metrics import last_records, last_step, trim


def step(number: int, loss: float = 2.5) -> StepRecord:
    figures = {"accuracy": 0.25, "bits_per_byte": None, "lr": 1e-3, "grad_norm": 0.1 + number, "tokens": 9}
    return StepRecord(number, loss, **figures, step_ms=1.0, data_ms=0.5, skipped=False, nan_count=0)  # type: ignore[arg-type]


def evaluation(number: int) -> EvalRecord:
    return EvalRecord(number, 2.25, 9.5, bits_per_byte=2.0, accuracy=0.5, tokens=9, text_bytes=None, eval_s=1.0)


RECORDS = [step(1), step(2), evaluation(2), step(3), step(4), evaluation(4), step(5)]


def lines(*records: StepRecord | EvalRecord) -> bytes:
    return b"".join(to_json(record.to_dict()).encode() + b"\n" for record in records)


@pytest.mark.parametrize("torn", [b"", b'{"kind": "st', b'{"kind": "step", "step": 6}', b"\x00\x00\n"])
@pytest.mark.parametrize("behind", range(7))
def test_what_lies_behind_a_step_is_cut_off(tmp_path: Path, behind: int, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines(*RECORDS) + torn)
    trim(path, behind)
    kept = [record for record in RECORDS if record.step <= behind]
    assert path.read_bytes() == lines(*kept)
    assert last_records(path) == [record for record in kept if record.step == kept[-1].step]
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_left_is_on_disk_before_it_replaces_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines(*RECORDS))
    lengths: list[int] = []
    monkeypatch.setattr("os.fsync", lambda _: lengths.append(path.stat().st_size))
    trim(path, 2)
    assert lengths == [len(lines(*RECORDS))]


def test_without_a_file_there_are_no_records_and_trimming_makes_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert (last_records(path), last_step(path)) == ([], (0, None))
    trim(path, 3)
    assert path.read_bytes() == b""


def test_the_end_of_a_long_file_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines(*(step(i) for i in range(1, 2000)), evaluation(1999)))
    assert last_records(path) == [step(1999), evaluation(1999)]
    assert last_step(path) == (1999, 2.5)
    assert last_step(path, up_to=1990) == (1990, 2.5)


def test_null_is_a_number_that_was_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines(step(1, math.nan)))
    (record,) = last_records(path)
    assert isinstance(record, StepRecord)
    assert math.isnan(record.loss)
    assert record.bits_per_byte is None
    assert last_step(path) == (1, None)
