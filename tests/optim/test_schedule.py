"""The learning rate, a pure function: values by hand, and its shape for any setting."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colakit.optim.schedule import learning_rate

PEAK = 5e-4


def rates(warmup: int, steps: int, floor: float = 0.0) -> list[float]:
    return [learning_rate(s, peak=PEAK, warmup_steps=warmup, max_steps=steps, min_frac=floor) for s in range(steps)]


def test_warm_up_climbs_from_its_first_part_to_the_peak() -> None:
    assert rates(4, 20)[:5] == pytest.approx([PEAK / 4, PEAK / 2, PEAK * 3 / 4, PEAK, PEAK])


def test_the_cosine_s_midpoint_is_halfway() -> None:
    assert learning_rate(60, peak=1.0, warmup_steps=20, max_steps=100) == pytest.approx(0.5)
    assert learning_rate(60, peak=1.0, warmup_steps=20, max_steps=100, min_frac=0.2) == pytest.approx(0.6)
    assert learning_rate(40, peak=1.0, warmup_steps=20, max_steps=100) == pytest.approx(
        0.5 * (1 + math.cos(math.pi / 4))
    )


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_the_last_step_stands_one_before_the_cosine_s_end(floor: float) -> None:
    last = rates(20, 100, floor)[-1]
    expected = PEAK * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * 79 / 80)))
    assert last == pytest.approx(expected)
    assert last > PEAK * floor
    for step in (100, 101, 10_000):
        after = learning_rate(step, peak=PEAK, warmup_steps=20, max_steps=100, min_frac=floor)
        assert after == pytest.approx(PEAK * floor, abs=1e-12)


def test_without_warm_up_it_starts_at_the_peak() -> None:
    assert learning_rate(0, peak=PEAK, warmup_steps=0, max_steps=10) == PEAK
    assert learning_rate(0, peak=PEAK, warmup_steps=0, max_steps=1) == PEAK


def test_the_paper_s_run() -> None:
    assert rates(2000, 10_000)[0] == pytest.approx(2.5e-7)
    assert rates(2000, 10_000)[1999] == pytest.approx(5e-4)
    assert rates(2000, 10_000)[6000] == pytest.approx(2.5e-4)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data(), steps=st.integers(1, 300), floor=st.floats(0.0, 1.0))
def test_it_rises_to_the_peak_once_and_then_falls(data: st.DataObject, steps: int, floor: float) -> None:
    warmup = data.draw(st.integers(0, steps - 1))
    found = rates(warmup, steps, floor)
    rise, fall = found[: warmup + 1], found[warmup:]
    assert all(0.0 < r <= PEAK * (1 + 1e-12) for r in found)
    assert all(a < b for a, b in pairwise(rise[:-1]))
    assert all(a >= b - 1e-18 for a, b in pairwise(fall))
    assert found[warmup] == pytest.approx(PEAK)  # the cosine begins where the warm-up ends
    if warmup:
        assert found[warmup - 1] == pytest.approx(PEAK)
    assert min(fall) >= PEAK * floor - 1e-18
    # No jump: the slope of the cosine is at most π/2 per unit of progress.
    largest = max((a - b for a, b in pairwise(fall)), default=0.0)
    assert largest <= PEAK * math.pi / 2 / max(1, steps - warmup) + 1e-18


@settings(max_examples=50, deadline=None, derandomize=True)
@given(factor=st.floats(1e-3, 1e3), step=st.integers(0, 120))
def test_it_is_proportional_to_the_peak(factor: float, step: int) -> None:
    one = learning_rate(step, peak=PEAK, warmup_steps=20, max_steps=100, min_frac=0.1)
    other = learning_rate(step, peak=factor * PEAK, warmup_steps=20, max_steps=100, min_frac=0.1)
    assert other == pytest.approx(factor * one)
