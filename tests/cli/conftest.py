"""What the tests of the command line share."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from colakit.cli.app import main


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def colakit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run `colakit` in this process, through its real entry point."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # Typer installs its own
    for variable in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(variable, raising=False)

    def run(*args: str) -> Outcome:
        capsys.readouterr()
        code: object = 0
        try:
            main(list(args))
        except SystemExit as exit_:
            code = exit_.code or 0
        assert isinstance(code, int)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run
