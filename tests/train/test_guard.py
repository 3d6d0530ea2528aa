"""Which updates are left out: not finite always, spikes where they are asked for."""

import json
import math
import random

import pytest

from colakit.train.guard import WINDOW, Guard


def feed(guard: Guard, n: int, seed: int = 0) -> list[object]:
    """Steps of loss 4 ± 0.1 and norm 1 ± 0.05."""
    draw = random.Random(seed)
    return [guard.judge(4 + draw.uniform(-0.1, 0.1), 1 + draw.uniform(-0.05, 0.05)) for _ in range(n)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_left_out(bad: float) -> None:
    guard = Guard()
    assert guard.judge(bad, 1.0) == guard.judge(1.0, bad) == "not finite"
    assert guard.in_a_row == 2
    assert guard.judge(1e30, 1e30) is None
    assert guard.in_a_row == 0


def test_a_spike_of_loss_or_norm_is_left_out_once_half_a_window_was_seen() -> None:
    guard = Guard(6.0)
    assert feed(guard, WINDOW // 2 - 1) == [None] * (WINDOW // 2 - 1)
    assert guard.judge(4.0, 1.0) is None
    assert guard.judge(5.0, 1.0) == "spike"
    assert guard.judge(4.0, 2.0) == "spike"
    assert guard.judge(3.0, 0.1) is None, "falling is none"
    assert Guard(None).judge(1e9, 1e9) is None


def test_the_threshold_is_in_standard_deviations() -> None:
    def judged(spikes: float) -> object:
        guard = Guard(spikes)
        for i in range(WINDOW):
            assert guard.judge(3.0 + 2 * (i % 2), 1.0 + 2 * (i % 2)) is None  # 4 ± 1, 2 ± 1
        return guard.judge(4 + 2.5, 2.0)

    assert (judged(2.6), judged(2.4)) == (None, "spike")


def test_a_level_that_stays_is_soon_none() -> None:
    guard = Guard(4.0)
    feed(guard, WINDOW)
    judged = [guard.judge(8.0, 1.0) for _ in range(20)]
    assert judged[0] == "spike"
    assert judged[-1] is None


def test_what_is_not_finite_does_not_move_the_threshold() -> None:
    guard, other = Guard(6.0), Guard(6.0)
    for each in (guard, other):
        feed(each, WINDOW)
    guard.judge(math.nan, 1.0)
    guard.judge(1.0, math.inf)
    assert guard.state_dict() == {**other.state_dict(), "in_a_row": 2}


def test_it_goes_on_from_its_state() -> None:
    whole, first = Guard(1.5), Guard(1.5)
    feed(whole, 150), feed(first, 150)
    second = Guard(1.5)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert feed(second, 200, seed=1) == feed(whole, 200, seed=1)
    assert "spike" in feed(whole, 500, seed=2)


def test_what_was_left_out_in_a_row_is_part_of_its_state() -> None:
    first, second = Guard(), Guard()
    assert [first.judge(math.nan, 1.0) for _ in range(3)] == ["not finite"] * 3
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.judge(math.nan, 1.0)
    assert second.in_a_row == 4


def test_where_nothing_varies_nothing_is_a_spike() -> None:
    guard = Guard(3.0)
    assert {guard.judge(4.0, 1.0) for _ in range(WINDOW)} == {None}
    assert guard.judge(4.0 + 1e-9, 1.0) is None
