"""Medians of what was measured, of the latest steps alone where that is asked for."""

import pytest
import torch

from colakit.optim import clock as clock_module
from colakit.optim.clock import Clock


def measured(clock: Clock, monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    for s in seconds:
        times = iter([10.0, 10.0 + s])
        monkeypatch.setattr("time.perf_counter", lambda times=times: next(times))
        with clock.measure():
            pass


def test_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(torch.device("cpu"))
    assert clock.median_ms() is None
    measured(clock, monkeypatch, 9.0, 1.0, 2.0, 8.0, 4.0)
    assert clock.median_ms() == pytest.approx(4000.0)
    assert clock.median_ms(last=3) == pytest.approx(4000.0)
    assert clock.median_ms(last=2) == pytest.approx(6000.0)
    assert clock.median_ms(last=1) == pytest.approx(4000.0)


def test_old_steps_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(torch.device("cpu"))
    measured(clock, monkeypatch, *[5.0] * clock_module._KEPT, *[1.0] * clock_module._KEPT)
    assert clock.median_ms() == pytest.approx(1000.0)
    assert clock_module._KEPT == 1000
