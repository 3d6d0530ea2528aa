"""Where a run's records go while it trains: console, TensorBoard, ``metrics.jsonl``. Sinks read nothing but records."""

import math
import os
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from colakit.records.base import to_json
from colakit.records.run import EvalRecord, StepRecord


class Sink(Protocol):
    """Takes the records of a run in the order they arise."""

    def step(self, record: StepRecord) -> None:
        """After each optimizer step."""

    def evaluation(self, record: EvalRecord) -> None:
        """After each evaluation."""

    def flush(self) -> None:
        """Before each checkpoint: what was taken so far must outlive the process."""

    def close(self) -> None:
        """When the run ends, however it ends."""


class JsonlSink:
    """One JSON object a line, flushed as it is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def step(self, record: StepRecord) -> None:
        """Append the step."""
        self._file.write(to_json(record.to_dict()) + "\n")

    def evaluation(self, record: EvalRecord) -> None:
        """Append the evaluation."""
        self._file.write(to_json(record.to_dict()) + "\n")

    def flush(self) -> None:
        """Have the disk hold every line."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardSink:
    """TensorBoard scalars under ``train/`` and ``val/``."""

    def __init__(self, folder: Path, behind: int = 0, again: Sequence[StepRecord | EvalRecord] = ()) -> None:
        """A run that is resumed `behind` a step gives the records of that step `again`.

        What TensorBoard's files hold of that step and later ones, which a kill may have left incomplete, is void.
        """
        from torch.utils.tensorboard import SummaryWriter

        first = again[0].step if again else behind + 1
        self._writer = SummaryWriter(folder, purge_step=first if behind else None)
        for record in again:
            if isinstance(record, StepRecord):
                self.step(record)
            else:
                self.evaluation(record)

    def step(self, record: StepRecord) -> None:
        """Write the step's scalars."""
        self._write(
            "train",
            record.step,
            {
                "loss": record.loss,
                "accuracy": record.accuracy,
                "perplexity": math.exp(min(record.loss, 700.0)),
                "bits_per_byte": record.bits_per_byte,
                "lr": record.lr,
                "grad_norm": record.grad_norm,
                "data_ms": record.data_ms,
                "it_per_s": record.it_per_s,
                "tokens_per_s": record.tokens_per_s,
                "nan_count": record.nan_count,
            },
        )

    def evaluation(self, record: EvalRecord) -> None:
        """Write the evaluation's scalars."""
        self._write(
            "val",
            record.step,
            {
                "loss": record.val_loss,
                "accuracy": record.accuracy,
                "perplexity": record.perplexity,
                "bits_per_byte": record.bits_per_byte,
            },
        )

    def flush(self) -> None:
        """Write what waits in memory."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()

    def _write(self, group: str, step: int, scalars: dict[str, float | None]) -> None:
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(f"{group}/{name}", value, step)


def _whole() -> Column:
    return Column(no_wrap=True)


class ConsoleSink:
    """A progress bar on a terminal, plain lines elsewhere; a line per evaluation on both. Rates are over 20 steps."""

    def __init__(self, console: Console, max_steps: int) -> None:
        self._console = console
        self._max_steps = max_steps
        self._every = max(1, max_steps // 10)
        self._recent: deque[StepRecord] = deque(maxlen=20)
        # Room for the bar and the rates; a narrower terminal shows step, loss and ETA.
        live = console.is_terminal and not console.is_dumb_terminal
        self._wide = not live or console.width >= 80
        self._progress: Progress | None = None
        if live:
            bar = [BarColumn(bar_width=None)] if self._wide else []
            self._progress = Progress(
                TextColumn("step", table_column=_whole()),
                MofNCompleteColumn(table_column=_whole()),
                *bar,
                TextColumn("{task.fields[figures]}", table_column=_whole()),
                TextColumn("ETA", table_column=_whole()),
                TimeRemainingColumn(compact=True, table_column=_whole()),
                console=console,
            )
            self._task = self._progress.add_task("train", total=max_steps, figures="")
            self._progress.start()

    def step(self, record: StepRecord) -> None:
        """Move the bar, or print every tenth part of the run."""
        self._recent.append(record)
        seconds = sum(r.step_ms for r in self._recent) / 1000.0
        it_per_s, tokens_per_s = len(self._recent) / seconds, sum(r.tokens for r in self._recent) / seconds
        figures = f"loss {record.loss:.3f}"
        if self._wide:
            figures += f"  {it_per_s:.2f} it/s  {tokens_per_s:,.0f} tokens/s"
            figures += f"  {record.nan_count} skipped" if record.nan_count else ""
        if self._progress is not None:
            self._progress.update(self._task, completed=record.step, figures=figures)
        elif record.step == 1 or record.step % self._every == 0:
            left = (self._max_steps - record.step) / it_per_s
            self._line(f"step {record.step}/{self._max_steps}  {figures}  ETA {left:,.0f} s")
        if record.skipped:
            numbers = f"loss {record.loss:.4g}, gradient norm {record.grad_norm:.4g}"
            self._line(f"step {record.step}: update skipped, {record.skip_reason} ({numbers})")

    def evaluation(self, record: EvalRecord) -> None:
        """Print the evaluation's line."""
        bits = f"{record.bits_per_byte:.3f}" if record.bits_per_byte is not None else "n/a"
        self._line(
            f"step {record.step}: validation loss {record.val_loss:.4f}  bits/byte {bits}  "
            f"accuracy {record.accuracy:.3f}  ({record.tokens:,} tokens, {record.eval_s:.1f} s)"
        )

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._progress is not None:
            self._progress.stop()

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class SinkSet:
    """Several sinks as one."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def step(self, record: StepRecord) -> None:
        """Pass the step on."""
        for sink in self._sinks:
            sink.step(record)

    def evaluation(self, record: EvalRecord) -> None:
        """Pass the evaluation on."""
        for sink in self._sinks:
            sink.evaluation(record)

    def flush(self) -> None:
        """Flush all."""
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        """Close all, the others too where one fails."""
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)
