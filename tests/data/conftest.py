"""What the tests of data share."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Refuse a folder's content, as the system does to those without permission; root, who may run this, has all."""

    def refuse(folder: Path, call: str, *, itself: bool) -> None:
        original = getattr(os, call)

        def checked(path: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(path, int) and (folder in Path(path).parents or (itself and Path(path) == folder)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
            return original(path, *args, **kwargs)

        monkeypatch.setattr(os, call, checked)

    def lock(folder: Path) -> None:
        refuse(folder, "stat", itself=False)
        refuse(folder, "mkdir", itself=False)
        refuse(folder, "scandir", itself=True)
        refuse(folder, "listdir", itself=True)

    return lock
