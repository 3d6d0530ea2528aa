"""Signals as a flag that the training loop reads between steps."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


class StopFlag:
    """Set by the first signal; the second one interrupts at once."""

    def __init__(self, *, is_shared: bool = False) -> None:
        self.is_set = False
        self._is_shared = is_shared

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True
        if not self._is_shared:
            _tell()

    def agreed(self) -> None:
        """Say what is done for it, once all processes know of it: a launcher ends them by a signal too."""
        if self._is_shared:
            _tell()


def _tell() -> None:
    log.warning("Stopping after this step: saving, evaluating. A second signal stops at once.")


@contextmanager
def stop_on_signal(*, is_shared: bool = False) -> Iterator[StopFlag]:
    """Turn SIGINT, SIGTERM and SIGHUP (a closed terminal) into a flag that the loop reads between steps.

    Outside the main thread: no handlers. `is_shared`: by several processes.
    """
    flag = StopFlag(is_shared=is_shared)
    wanted = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    signals = wanted if threading.current_thread() is threading.main_thread() else []
    # Who has one ignored, as nohup has SIGHUP, wants it ignored.
    before = {s: signal.signal(s, flag) for s in signals if signal.getsignal(s) is not signal.SIG_IGN}
    try:
        yield flag
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
