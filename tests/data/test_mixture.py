"""Schedules: cases worked out by hand. What holds for all of them is in ``tests/property/test_mixture.py``."""

import numpy as np
import pytest
from numpy.typing import NDArray

from colakit.build import build_schedule
from colakit.config.schema import DataConfig, ModelConfig, RunConfig, SourceConfig, StageConfig, TrainConfig
from colakit.data.loader import TrainLoader
from colakit.data.mixture import WINDOW, Schedule


def windows(schedule: Schedule, n: int) -> list[list[int]]:
    """Blocks of each source in the first `n` windows, asked for one by one."""
    sources = np.array([schedule.at(block)[0] for block in range(n * WINDOW)]).reshape(n, WINDOW)
    return [np.bincount(window, minlength=len(schedule.names)).tolist() for window in sources]


def test_a_source_without_weight_gets_no_block_where_the_others_shares_do_not_sum_up() -> None:
    """Three thirds, each cut to nine digits, are 0.999999999 of a block: what is missing is no block of the fourth."""
    thirds = Schedule("abcd", [{"a": 1.0, "b": 1.0, "c": 1.0}, {"d": 1.0}], [9 * WINDOW], seed=0)
    found = windows(thirds, 9)
    assert all(window[3] == 0 and sorted(window[:3]) == [333, 333, 334] for window in found)
    assert all(abs(sum(window[source] for window in found) - 3000) <= 1 for source in range(3))


@pytest.mark.parametrize(
    "weights", [[0.29, 0.71], [0.57, 0.43], [0.1] * 10, [0.058, 0.942], [29.0, 71.0], [0.7, 0.14, 0.16]]
)
def test_shares_of_whole_blocks_are_the_same_in_every_window(weights: list[float]) -> None:
    """0.29 · 1000 is 290, though not in floats."""
    names = "abcdefghij"[: len(weights)]
    schedule = Schedule(names, [dict(zip(names, weights, strict=True))], [], seed=1)
    expected = [round(WINDOW * weight / round(sum(weights), 9)) for weight in weights]
    assert windows(schedule, 5) == [expected] * 5


def test_a_source_of_less_than_a_block_per_window_gets_its_blocks() -> None:
    schedule = Schedule("ab", [{"a": 0.0004, "b": 0.9996}], [], seed=0)
    assert {window[0] for window in windows(schedule, 10)} == {0, 1}
    assert abs(schedule.counts(1000 * WINDOW)[0] - 400) <= 2
    assert abs(schedule.counts(100_000 * WINDOW)[0] - 40_000) <= 4


def test_weights_of_any_size_are_shares() -> None:
    small, large = ({"a": 3 * size, "b": 7 * size} for size in (1e-308, 0.25e308))  # the sum is beyond floats
    assert all(windows(Schedule("ab", [weights], [], seed=0), 2) == [[300, 700]] * 2 for weights in (small, large))


def test_windows_begin_with_their_stage() -> None:
    schedule = Schedule("ab", [{"a": 1.0}, {"a": 0.25, "b": 0.75}], [137], seed=0)
    assert {schedule.at(block)[0] for block in range(137)} == {0}
    for first in (137, 1137):
        assert sum(schedule.at(block)[0] for block in range(first, first + WINDOW)) == 750
    assert schedule.counts(137).tolist() == [137, 0]
    assert schedule.counts(2137).tolist() == [137 + 500, 1500]


def test_a_stage_may_be_empty() -> None:
    schedule = Schedule("abc", [{"a": 1.0}, {"b": 1.0}, {"c": 1.0}], [3, 3], seed=0)
    assert [schedule.at(block) for block in range(5)] == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]
    assert [schedule.stage_of(block) for block in range(5)] == [0, 0, 0, 2, 2]
    assert schedule.counts(5).tolist() == [3, 0, 2]


def test_seed_stage_and_window_move_blocks_within_their_window_alone() -> None:
    weights = [{"a": 0.5, "b": 0.3, "c": 0.2}] * 2

    def sources(seed: int) -> list[list[int]]:
        schedule = Schedule("abc", weights, [2 * WINDOW], seed)
        each = [schedule.at(block)[0] for block in range(4 * WINDOW)]
        return [each[first : first + WINDOW] for first in range(0, 4 * WINDOW, WINDOW)]

    one, other = sources(0), sources(1)
    assert all(np.bincount(window).tolist() == [500, 300, 200] for window in one + other)
    assert len({tuple(window) for window in one + other}) == 8, "no order comes twice"
    assert sources(0) == one


def test_the_mixture_is_pinned() -> None:
    """A change of it would change the loss of every run on a mixture at the same seed."""
    schedule = Schedule("abc", [{"a": 0.6, "b": 0.3, "c": 0.1}], [], seed=0)
    assert "".join("abc"[schedule.at(block)[0]] for block in range(24)) == "baaaababcaabaacbaaabbaaa"


class Blocks:
    """As many blocks as that, none of which is read."""

    n_targets = 0

    def __init__(self, n_blocks: int) -> None:
        self._n_blocks = n_blocks

    def __len__(self) -> int:
        return self._n_blocks

    def __getitem__(self, index: int, /) -> NDArray[np.int32]:
        raise NotImplementedError


def run_config(stages: list[StageConfig], *, seq_len: int, max_steps: int, batch_size: int) -> RunConfig:
    """Each stage reads a source of its own."""
    named = {name: SourceConfig(source="files", path=name) for stage in stages for name in stage.weights}
    return RunConfig(
        model=ModelConfig(seq_len=seq_len),
        train=TrainConfig(max_steps=max_steps, batch_size=batch_size, seed=3),
        data=DataConfig(sources=named, stages=tuple(stages)),
    )


@pytest.mark.parametrize(("tokens", "end"), [(1, 1), (7, 1), (8, 2), (14, 2), (7 * 23, 23), (7 * 23 + 1, 24)])
def test_a_stage_ends_with_the_block_that_reaches_its_tokens(tokens: int, end: int) -> None:
    stages = [StageConfig(until_tokens=tokens, weights={"a": 1.0}), StageConfig(weights={"b": 1.0})]
    config = run_config(stages, seq_len=7, max_steps=10, batch_size=5)
    assert config.stage_ends == (end,)
    loader = TrainLoader({"a": Blocks(4), "b": Blocks(9)}, build_schedule(config), batch_size=5, seed=3)
    sources = [block.source for step in range(10) for block in loader.blocks_of(step)]
    assert sources == ["a"] * end + ["b"] * (50 - end), "in the middle of a batch too"


@pytest.mark.parametrize(("frac", "end"), [(0.001, 0), (0.1, 5), (0.3, 15), (0.29, 14), (0.55, 28), (0.999, 50)])
def test_a_stage_ends_at_its_share_of_the_blocks(frac: float, end: int) -> None:
    stages = [StageConfig(until_frac=frac, weights={"a": 1.0}), StageConfig(weights={"b": 1.0})]
    config = run_config(stages, seq_len=7, max_steps=10, batch_size=5)
    assert config.stage_ends == (end,)
    schedule = build_schedule(config)
    assert [schedule.names[schedule.at(block)[0]] for block in range(50)] == ["a"] * end + ["b"] * (50 - end)
    assert [schedule.at(block)[1] for block in range(50)] == [*range(end), *range(50 - end)]


def test_a_single_source_is_a_mixture_of_one() -> None:
    config = RunConfig(data=DataConfig(source="files", path="x"))
    schedule = build_schedule(config)
    assert schedule.names == ("data",)
    assert [schedule.at(block) for block in (0, 1, 999, 1000, 123_456)] == [(0, n) for n in (0, 1, 999, 1000, 123_456)]
