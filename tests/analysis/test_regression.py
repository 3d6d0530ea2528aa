"""Two reports beside each other."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from colakit.analysis.regression import Report, compare, differences, read_report
from colakit.errors import RunError


def entry(preset: str, speed: float | None, memory: float | None = 1.0, **changes: Any) -> dict[str, Any]:
    common = {"preset": preset, "batch_size": 4, "seq_len": 8, "dtype": "float32", "compiled": False}
    return {**common, "tokens_per_s": speed, "peak_memory_gib": memory, **changes}


def values(*results: dict[str, Any], peers: tuple[dict[str, Any], ...] = (), **machine: Any) -> dict[str, Any]:
    named = {
        "cpu": "x",
        "cpu_capability": "AVX2",
        "products": "MKL",
        "threads": 2,
        "gpu": None,
        "driver": None,
        "cuda": None,
    }
    return {
        "schema": 1,
        "kind": "bench_report",
        "machine": {**named, "packages": {"torch": "2.13"}, **machine},
        "results": list(results),
        "peers": list(peers),
    }


def report(*results: dict[str, Any], **changes: Any) -> Report:
    return Report.model_validate(values(*results, **changes))


def worse(before: Report, after: Report, threshold: float = 0.05) -> dict[str, bool]:
    return {r.name: r.is_worse for r in compare(before, after, threshold)}


@pytest.mark.parametrize(("speed", "memory", "is_worse"), [(96, 1.04, False), (94, 1.0, True), (200, 1.06, True)])
def test_worse_is_slower_or_larger_by_more_than_the_threshold(speed: float, memory: float, is_worse: bool) -> None:
    found = compare(report(entry("cola", 100.0)), report(entry("cola", speed, memory)), 0.05)
    assert [(r.speed, r.peak_memory, r.is_worse) for r in found] == [(speed / 100, memory, is_worse)]


def test_everyone_meets_his_own_kind() -> None:
    before = report(
        entry("cola", 100.0),
        entry("cola", 200.0, None, compiled=True),
        entry("cola", 300.0, batch_size=8),
        entry("gone", 5.0),
        entry("never", None),
        peers=(entry("original", 50.0, name="hf-llama"),),
    )
    after = report(
        entry("cola", 300.0, batch_size=8),
        entry("cola", 100.0, compiled=True),
        entry("cola", 101.0),
        entry("new", 1.0),
        peers=(entry("original", 49.0, name="hf-llama"),),
    )
    found = [(r.name, r.batch_size, r.speed, r.is_worse) for r in compare(before, after, 0.05)]
    assert found == [
        ("cola", 4, 1.01, False),
        ("cola, compiled", 4, 0.5, True),
        ("cola", 8, 1.0, False),
        ("gone", 4, None, True),
        ("hf-llama", 4, 0.98, False),
    ]


def test_other_machines_are_told() -> None:
    assert differences(report(), report()) == []
    told = differences(report(), report(threads=4, packages={"torch": "2.14"}))
    assert told == [
        "threads: 2 before, 4 after",
        "packages: {'torch': '2.13'} before, {'torch': '2.14'} after",
    ]


@pytest.mark.parametrize(
    "name", ["platform", "cpu", "cpu_capability", "products", "threads", "gpu", "driver", "cuda", "python", "packages"]
)
def test_everything_that_a_speed_hangs_on_is_looked_at(name: str) -> None:
    assert differences(report(), report(**{name: "other"}))[0].startswith(f"{name}: ")


def test_what_cannot_be_compared_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no speed to compare with"):
        compare(report(entry("cola", None)), report(), 0.05)
    path = tmp_path / "a.json"
    with pytest.raises(RunError, match=r"a\.json cannot be read as a report: .*colakit bench --out"):
        read_report(path)
    for content, message in (
        ("{", "cannot be read as a report"),
        ("[]", "is no report of speeds"),
        ('{"kind": "params"}', "is no report of speeds"),
        (json.dumps({**values(), "schema": 0}), "another version"),
    ):
        path.write_text(content)
        with pytest.raises(RunError, match=message):
            read_report(path)
    path.write_text(json.dumps(values(entry("cola", 1.0))))
    assert read_report(path) == report(entry("cola", 1.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"results": None},
        {"results": [1, 2]},
        {"machine": None},
        *({"results": [{**entry("cola", 1.0), "tokens_per_s": speed}]} for speed in ("fast", 0, -1.0, math.nan)),
        {"results": [{"preset": "cola"}]},
        {"results": [{**entry("cola", 1.0), "preset": ["cola"]}]},
        {"peers": [{**entry("cola", 1.0), "peak_memory_gib": math.inf}]},
    ],
)
def test_a_damaged_report_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**values(), **changes}))
    with pytest.raises(RunError, match=rf"a\.json is damaged: {next(iter(changes))}.*: .*\. Measure again\."):
        read_report(path)


def test_a_report_without_an_end_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(RunError, match="it is not JSON"):
        read_report(tmp_path / "a.json")


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adamw"},
        {"attention": "flash"},
        {"micro_batch_size": 2},
        {"dtype": "bfloat16"},
        {"model_flops": 9},
        {"seq_len": 9},
    ],
)
def test_what_is_not_the_same_is_not_compared(change: dict[str, Any]) -> None:
    one = {"optimizer": "muon", "attention": "sdpa", "micro_batch_size": 4, "model_flops": 8}
    before, after = report(entry("cola", 1.0, **one)), report(entry("cola", 1.0, **one | change))
    assert [r.speed for r in compare(before, before, 0.05)] == [1.0]
    with pytest.raises(RunError, match="Nothing of the first report was measured in the second"):
        compare(before, after, 0.05)
