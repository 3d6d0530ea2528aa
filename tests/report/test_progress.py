"""The bar of a budget: it fills with the time, and says what goes on."""

import io
import time

import pytest
from rich.console import Console
from rich.progress import Progress

from colakit.report import progress as module
from colakit.report.progress import _Elapsed, budget_bar


def test_it_fills_with_the_time() -> None:
    now = 100.0
    bar = Progress(get_time=lambda: now)
    bar.add_task("", total=60.0)
    (task,) = bar.tasks
    now = 115.0
    shown = _Elapsed().render(task)
    assert (shown.completed, shown.total) == (15.0, 60.0)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_it_says_what_goes_on_where_somebody_looks(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=is_terminal, width=100)
    monkeypatch.setattr(module, "stderr_console", lambda: console)
    with budget_bar(420.0) as watch:
        watch("cola, batch size 4: turn 2")
        time.sleep(0.2)
    assert ("cola, batch size 4: turn 2" in text.getvalue()) == is_terminal
    assert ("of 420 s" in text.getvalue()) == is_terminal
