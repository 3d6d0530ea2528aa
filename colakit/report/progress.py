"""Bars for work on data, and for work within a budget of time: on the standard error, where that is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar

from colakit.report.tables import stderr_console


class Reading(Protocol):
    """How far a source has come."""

    @property
    def source(self) -> str: ...
    @property
    def doing(self) -> str: ...
    @property
    def documents(self) -> int: ...
    @property
    def bytes_read(self) -> int: ...
    @property
    def bytes_total(self) -> int | None: ...


class PreparationBar:
    """Shows a bar for every source and what is done with it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[tuple[str, str], TaskID] = {}

    def __call__(self, reading: Reading) -> None:
        """Show how far a source has come."""
        key = (reading.source, reading.doing)
        if key not in self._tasks:
            label = f"{reading.doing} {reading.source}"
            self._tasks[key] = self._progress.add_task(label, total=reading.bytes_total, documents="")
        self._progress.update(
            self._tasks[key], completed=reading.bytes_read, documents=f"{reading.documents:,} documents"
        )


@contextmanager
def preparation_bar() -> Iterator[PreparationBar]:
    """A `PreparationBar` that disappears when all is prepared; silent where nobody looks."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[documents]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = stderr_console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield PreparationBar(progress)


class _Elapsed(BarColumn):
    """Fills with the time, not with what is completed."""

    def render(self, task: Task) -> ProgressBar:
        return ProgressBar(total=task.total, completed=task.elapsed or 0.0, width=20)


@contextmanager
def budget_bar(budget_s: float) -> Iterator[Callable[[str], None]]:
    """Says what is going on, beside the part of `budget_s` that has gone."""
    console = stderr_console()
    columns = (TextColumn("{task.description}"), _Elapsed(), TimeElapsedColumn(), TextColumn(f"of {budget_s:,.0f} s"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=budget_s)
        yield lambda text: progress.update(task, description=text)


@contextmanager
def counting_bar(doing: str, what: str) -> Iterator[Callable[[int, int], None]]:
    """Told how many of how many are done; disappears in the end, silent where nobody looks."""
    console = stderr_console()
    counts = TextColumn("{task.completed:,.0f} of {task.total:,.0f} " + what)
    columns = (TextColumn(doing), BarColumn(), counts, TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(doing, total=1)
        yield lambda done, total: progress.update(task, completed=done, total=total)
