"""The whole of it: on which machine everyone is counted and measured."""

from collections.abc import Iterator, Sequence

import pytest
import torch

from colakit.bench import run as running
from colakit.bench.contestant import Contestant
from colakit.bench.run import run_bench
from colakit.bench.study import Measured, Study
from colakit.errors import ConfigError
from colakit.records.machine import PeakRecord
from tests.bench.tiny import contestant, figures


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Contestant]:
    """Who would have been measured."""
    everyone: list[Contestant] = []

    def run(_: Study, contestants: Sequence[Contestant]) -> Iterator[Measured]:
        everyone.extend(contestants)
        return (Measured(c, figures(0.5), repeats=3) for c in contestants)

    monkeypatch.setattr(Study, "run", run)
    monkeypatch.setattr(running, "measure_peaks", lambda _: PeakRecord("cpu", "float32", 1e11, 1e10))
    return everyone


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is the GPU there")
def test_ledgers_and_counts_are_those_of_the_machine_that_auto_comes_to(seen: list[Contestant]) -> None:
    """Unresolved, they would count as a GPU that multiplies bfloat16: half the bytes."""
    report = run_bench(
        [contestant("cola"), contestant("original", peer="hf-llama")], budget_s=9.0, watch=lambda _: None
    )
    assert {(c.config.train.device, c.config.train.dtype) for c in seen} == {("cpu", "float32")}
    assert [r.preset for r in report.results] == ["cola"]
    assert [p.name for p in report.peers] == ["hf-llama"]
    assert [(r.of, r.over) for r in report.ratios] == [("cola", "hf-llama")]


def test_presets_that_ask_for_different_machines_are_refused(seen: list[Contestant]) -> None:
    with pytest.raises(ConfigError, match="measured on one device, in one type, with one attention"):
        run_bench(
            [contestant("cola"), contestant("original", "model.attention=reference")],
            budget_s=9.0,
            watch=lambda _: None,
        )
    assert not seen
