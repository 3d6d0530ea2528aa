"""A run folder belongs to one process: the operating system's lock on a file, which ends with the process."""

import json
import os
import platform
import time
from pathlib import Path

from filelock import FileLock, Timeout

from colakit.errors import RunError, disk_fault

_LOCK, _OWNER = ".lock", ".owner.json"
_PATIENCE_S = 0.5
"""As long as somebody may look whether the lock is held."""


class RunLock:
    """The lock of the run folder `root`, which exists."""

    def __init__(self, root: Path) -> None:
        self._lock = FileLock(root / _LOCK, timeout=_PATIENCE_S)
        self._owner = root / _OWNER
        self._root = root

    def acquire(self) -> None:
        """Take the lock, if this object has it not; one whose process is gone is no hindrance.

        Raises RunError where another process has it, or it cannot be written.
        """
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire()
        except Timeout:
            raise RunError(
                f"{self._root}: {self._describe_owner()} is training there. Wait for it, or stop it (it saves and ends "
                "on Ctrl-C or SIGTERM)."
            ) from None
        except OSError as error:
            raise RunError(disk_fault(self._root, error)) from error
        owner = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        try:
            self._owner.write_text(json.dumps(owner) + "\n", encoding="utf-8")
        except OSError as error:
            self._lock.release()
            raise RunError(disk_fault(self._root, error)) from error

    def release(self) -> None:
        """Give it back."""
        if self._lock.is_locked:
            self._owner.unlink(missing_ok=True)
            self._lock.release()

    def is_held(self) -> bool:
        """Whether a process holds it."""
        if not Path(self._lock.lock_file).exists():
            return False
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return True
        except OSError:
            return False  # a folder that cannot be written to is nobody's to train in
        self._lock.release()
        return False

    def _describe_owner(self) -> str:
        try:
            owner = json.loads(self._owner.read_text("utf-8"))
            return f"process {owner['pid']} on {owner['host']}, since {owner['since']},"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"
