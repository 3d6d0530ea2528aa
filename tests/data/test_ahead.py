"""Work done ahead: the same items in the same order, whatever the depth, and a thread that ends."""

import threading
import time
from collections.abc import Iterator
from itertools import count

import pytest

from colakit.data.ahead import ahead


def wait_until_still(made: list[int]) -> int:
    """How many items there are once no more come."""
    while True:
        before = len(made)
        time.sleep(0.05)
        if len(made) == before:
            return before


@pytest.mark.parametrize("depth", [1, 2, 3, 50])
def test_any_depth_gives_the_same_items(depth: int) -> None:
    items = ahead(range(20), depth)
    assert list(items) == list(range(20))
    assert list(items) == [], "its end is its end"


@pytest.mark.parametrize("depth", [1, 3])
def test_it_works_ahead_and_no_further(depth: int) -> None:
    """The items that wait, and the one that waits for its place among them."""
    made: list[int] = []

    def items() -> Iterator[int]:
        for item in count():
            made.append(item)
            yield item

    steps = ahead(items(), depth)
    try:
        assert wait_until_still(made) == depth + 1
        assert [next(steps) for _ in range(4)] == [0, 1, 2, 3]
        assert wait_until_still(made) == depth + 5
    finally:
        steps.close()
    assert wait_until_still(made) <= depth + 6


def test_an_exception_comes_where_its_item_would() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("two")

    steps = ahead(items(), 5)
    assert next(steps) == 1
    with pytest.raises(KeyError, match="two"):
        next(steps)
    assert list(steps) == []


@pytest.mark.parametrize("n_taken", [0, 3])
def test_closing_ends_the_thread(n_taken: int) -> None:
    before = threading.active_count()
    steps = ahead(count(), 2)
    assert [next(steps) for _ in range(n_taken)] == list(range(n_taken))
    assert threading.active_count() == before + 1
    steps.close()
    assert threading.active_count() == before
    assert list(steps) == []
    steps.close()


def test_the_thread_ends_with_its_items() -> None:
    before = threading.active_count()
    assert list(ahead([1, 2], 5)) == [1, 2]
    assert threading.active_count() == before
