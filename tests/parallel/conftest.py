"""The processes that the tests of several share."""

from collections.abc import Iterator

import pytest

from tests.parallel.pool import Pool


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """They start when they are first asked for something."""
    started = Pool()
    yield started
    started.close()
