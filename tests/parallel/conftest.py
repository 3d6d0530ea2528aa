"""The processes that the tests of several share."""

from collections.abc import Iterator, Sequence

import pytest

from tests.parallel.pool import Pool


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """With ``--dist loadgroup`` one worker makes all tests that share processes, so that these are started once."""
    for item in items:
        if isinstance(item, pytest.Function) and "pool" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("pool"))


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """They start when they are first asked for something."""
    started = Pool()
    yield started
    started.close()
