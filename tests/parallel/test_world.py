"""What processes tell each other: sums, values, and what went wrong, which one of them says."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from colakit.errors import ColakitError, DataError, RunError
from colakit.parallel.world import ALONE, Told, World
from tests.parallel.pool import Pool

SILENT = "ended with 2"
"""The outcome of a process whose error another one tells."""


def exchange(world: World) -> dict[str, object]:
    rank = world.rank
    summed = world.sum_(torch.tensor([1.5, rank]))
    return {
        "main": world.is_main,
        "totals": world.totals(1, rank, 10**15 + rank),
        "any of one": world.any(rank == 1),
        "any of none": world.any(False),
        "sum": summed.tolist(),
        "gather": world.gather(("rank", rank)),
        "agree": world.agree(f"of {rank}"),
        "flags": world.gather(None if rank else 0),
    }


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_know_the_sums_and_what_each_has(pool: Pool, size: int) -> None:
    """Counts are summed as whole numbers: as floats, 10^15 would lose the last digits."""
    ranks = sum(range(size))
    for rank, found in enumerate(pool.run(size, exchange)):
        assert found == {
            "main": rank == 0,
            "totals": (size, ranks, size * 10**15 + ranks),
            "any of one": True,
            "any of none": False,
            "sum": [1.5 * size, ranks],
            "gather": [("rank", r) for r in range(size)],
            "agree": "of 0",
            "flags": [0] + [None] * (size - 1),
        }


def test_alone_it_is_the_same_without_anybody() -> None:
    found = exchange(ALONE)
    assert found["totals"] == (1, 0, 10**15)
    assert found["gather"] == [("rank", 0)]
    assert found["any of one"] is False
    with pytest.raises(DataError, match="nothing"):
        ALONE.together(fails("nothing"))
    with pytest.raises(DataError, match="nothing"):
        ALONE.main_first(fails("nothing"))
    assert ALONE.main_first(lambda: 7) == ALONE.together(lambda: 7) == 7
    assert isinstance(ALONE.told(RunError("all")), RunError)


def fails(message: str) -> Callable[[], None]:
    def work() -> None:
        raise DataError(message)

    return work


def outcome(work: Callable[[], object]) -> str:
    """What it returns or raises, in words."""
    try:
        return f"returned {work()}"
    except ColakitError as error:
        return f"{type(error).__name__}: {error}"
    except Told as told:
        return f"ended with {told.code}"


def together(world: World, failing: tuple[int, ...]) -> str:
    mine = f"of {world.rank}"
    return outcome(lambda: world.together(fails(mine) if world.rank in failing else lambda: mine))


@pytest.mark.parametrize(
    ("failing", "expected"),
    [
        ((), ["returned of 0", "returned of 1", "returned of 2"]),
        ((0,), ["DataError: of 0", "ended with 2", "ended with 2"]),
        ((0, 1, 2), ["DataError: of 0", "ended with 2", "ended with 2"]),
        ((2,), ["RunError: Process 2: of 2", "ended with 2", "ended with 2"]),
        ((2, 1), ["RunError: Process 1: of 1", "ended with 2", "ended with 2"]),
    ],
)
def test_what_fails_anywhere_is_said_once(pool: Pool, failing: tuple[int, ...], expected: list[str]) -> None:
    assert pool.run(3, together, failing) == expected


def after_main(world: World, folder: Path, failing: tuple[int, ...]) -> tuple[str, bool | None]:
    """What came of it, and whether the main process was done when this one began; None where it never began."""
    was_done: list[bool] = []

    def work() -> str:
        was_done.append((folder / "done").exists())
        if world.is_main:
            time.sleep(0.3)
        if world.rank in failing:
            raise DataError(f"of {world.rank}")
        if world.is_main:
            (folder / "done").touch()
        return f"of {world.rank}"

    came = outcome(lambda: world.main_first(work))
    return came, was_done[0] if was_done else None


@pytest.mark.parametrize(
    ("failing", "expected"),
    [
        ((), [("returned of 0", False), ("returned of 1", True), ("returned of 2", True)]),
        ((0,), [("DataError: of 0", False), ("ended with 2", None), ("ended with 2", None)]),
        ((1,), [("RunError: Process 1: of 1", False), ("ended with 2", True), ("ended with 2", True)]),
    ],
)
def test_the_main_process_goes_first(
    pool: Pool, tmp_path: Path, failing: tuple[int, ...], expected: list[tuple[str, bool | None]]
) -> None:
    """Twice, since each turn is one of its own."""
    for turn in ("first", "second"):
        (tmp_path / turn).mkdir()
        assert pool.run(3, after_main, tmp_path / turn, failing) == expected


def told(world: World) -> str:
    def work() -> None:
        raise world.told(RunError("all of us"))

    return outcome(work)


def test_what_all_meet_at_once_the_main_process_says(pool: Pool) -> None:
    assert pool.run(2, told) == ["RunError: all of us", "ended with 2"]


def leaves(world: World) -> str:
    if world.rank == 1:
        raise ValueError("gone")
    return "stayed"


def test_what_fails_in_a_process_of_the_pool_is_told_with_its_traceback(pool: Pool) -> None:
    with pytest.raises(AssertionError, match=r"process 1: Traceback[\s\S]*in leaves[\s\S]*ValueError: gone"):
        pool.run(3, leaves)
    assert pool.run(3, told)[0] == "RunError: all of us", "and the next test has new ones"
