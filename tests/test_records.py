"""Records as JSON: their kinds, and what strict JSON has no word for."""

import importlib
import json
import math
import pkgutil

import pytest

from colakit import records
from colakit.records.analysis import ComponentParams, FlopRecord, MemoryRecord, ParamRecord, Table6Record
from colakit.records.base import Record, to_json
from colakit.records.bench import (
    BenchRecord,
    BenchReport,
    ComparisonRecord,
    MaxBatchRecord,
    MaxBatchReport,
    OptimizerBenchRecord,
    PeerBenchRecord,
    ProbeRecord,
    RatioRecord,
)
from colakit.records.data import DataRecord
from colakit.records.evaluation import EvaluationRecord
from colakit.records.export import ExportRecord
from colakit.records.generation import GenerationRecord
from colakit.records.info import InfoRecord
from colakit.records.machine import DoctorRecord, Finding, MachineRecord, PeakRecord
from colakit.records.run import EvalRecord, ResumeProof, RunListing, RunSummary, StepRecord
from colakit.records.spectrum import SpectrumRecord
from colakit.records.tasks import TasksRecord

KINDS: dict[type[Record], str] = {
    StepRecord: "step",
    EvalRecord: "eval",
    RunSummary: "run",
    BenchRecord: "bench",
    PeerBenchRecord: "bench_peer",
    RatioRecord: "bench_ratio",
    ProbeRecord: "bench_probe",
    MaxBatchRecord: "max_batch",
    MaxBatchReport: "max_batch_report",
    BenchReport: "bench_report",
    ComparisonRecord: "bench_comparison",
    ParamRecord: "params",
    MemoryRecord: "memory",
    OptimizerBenchRecord: "optimizer_bench",
    Table6Record: "table6",
    FlopRecord: "flops",
    RunListing: "listing",
    ResumeProof: "resume_proof",
    DataRecord: "data",
    MachineRecord: "machine",
    PeakRecord: "peak",
    Finding: "finding",
    DoctorRecord: "doctor",
    InfoRecord: "info",
    EvaluationRecord: "evaluation",
    ExportRecord: "export",
    GenerationRecord: "generation",
    TasksRecord: "tasks",
    SpectrumRecord: "spectrum",
}


def make_step(loss: float = 2.0, step_ms: float = 250.0) -> StepRecord:
    return StepRecord(
        step=7,
        loss=loss,
        accuracy=0.5,
        bits_per_byte=None,
        lr=1e-3,
        grad_norm=math.inf,
        tokens=100,
        step_ms=step_ms,
        data_ms=0.5,
        skipped=True,
        nan_count=2,
    )


def test_every_record_has_its_kind() -> None:
    """Files already written are read by these names."""
    for module in pkgutil.iter_modules(records.__path__):
        importlib.import_module(f"{records.__name__}.{module.name}")
    assert {c: c.kind for c in Record.__subclasses__() if c.__module__.startswith(records.__name__)} == KINDS


def test_the_kind_comes_first() -> None:
    components = (ComponentParams("head", 5, 1.0),)
    values = ParamRecord("cola", total=5, non_embedding=5, components=components, claim=None, reason="none").to_dict()
    assert list(values.items())[:3] == [("kind", "params"), ("preset", "cola"), ("total", 5)]
    assert values["components"] == ({"name": "head", "params": 5, "share_frac": 1.0},)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_becomes_null_however_deep(bad: float) -> None:
    value = {"a": bad, "b": [bad, {"c": (bad, 1.5)}], "d": {"e": {"f": bad}}, "g": 0.0}
    assert json.loads(to_json(value)) == {
        "a": None,
        "b": [None, {"c": [None, 1.5]}],
        "d": {"e": {"f": None}},
        "g": 0.0,
    }


def test_other_values_stay_as_they_are() -> None:
    value = {"n": 3, "yes": True, "none": None, "text": "naïve NaN — ∞", "list": [1, "Infinity"]}
    line = to_json(value)
    assert json.loads(line) == value
    assert "naïve NaN — ∞" in line
    assert "\n" not in to_json({"text": "two\nlines"})


def test_a_record_with_nan_is_strict_json() -> None:
    values = json.loads(to_json(make_step(loss=math.nan).to_dict()), parse_constant=pytest.fail)
    assert (values["kind"], values["loss"], values["grad_norm"]) == ("step", None, None)
    assert (values["skipped"], values["tokens"]) == (True, 100)


def test_rates_of_a_step() -> None:
    record = make_step(step_ms=250.0)
    assert (record.it_per_s, record.tokens_per_s) == (4.0, 400.0)
