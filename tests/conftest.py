"""What all tests share: a cache folder of their own, and one thread, since tiny tensors gain nothing from two."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Read when torch is first imported, here and in the processes that tests start.
    os.environ["OMP_NUM_THREADS"] = "1"
    # What asks the hub shall ask the one of its test, or none.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # A shell's background jobs ignore them, and a run that finds a signal ignored leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared data is cached away from the user's own cache, in one folder for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(cache)
    yield cache
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(autouse=True)
def own_logger() -> Iterator[None]:
    """A test that runs the command leaves no log handler or level behind: whichever test follows, it begins as new."""
    logger = logging.getLogger("colakit")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers = handlers
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def memory_for_others() -> Iterator[None]:
    """A process that has made a training step keeps what it frees; the workers of a test run share one machine."""
    yield
    if psutil.Process().memory_info().rss > _MUCH_MEMORY:
        from colakit.host import give_back_freed_memory

        give_back_freed_memory()


_MUCH_MEMORY = 2 * 2**30
