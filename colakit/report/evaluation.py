"""What `eval` and `export` show: tables over their records."""

from collections.abc import Callable

from rich.table import Table

from colakit.records.evaluation import Estimate, EvaluationRecord, Scores
from colakit.records.export import ExportRecord
from colakit.records.tasks import TasksRecord
from colakit.report.runs import figures_table
from colakit.report.tables import add_name_column, add_number_column, new_table
from colakit.units import human_count

_METRICS: dict[str, tuple[Callable[[Scores], Estimate | None], str]] = {
    "loss, nats/token": (lambda s: s.loss, "{:.4f}"),
    "perplexity": (lambda s: s.perplexity, "{:,.2f}"),
    "bits per byte": (lambda s: s.bits_per_byte, "{:.4f}"),
    "top-1 accuracy": (lambda s: s.top1, "{:.4f}"),
    "top-5 accuracy": (lambda s: s.top5, "{:.4f}"),
}


def evaluation_table(record: EvaluationRecord) -> Table:
    """The metrics of a whole text, and of each of its sources beside it."""
    step = f", step {record.step:,}" if record.step is not None else ""
    table = new_table(f"{record.model}{step}, on {'what is held out of ' if record.is_held_out else ''}{record.data}")
    columns = {"all": record.scores, **record.sources} if record.sources else {"": record.scores}
    add_name_column(table, "")
    for name in columns:
        add_number_column(table, name)
        add_name_column(table, "95 % over documents")
    for metric, (get, pattern) in _METRICS.items():
        cells = [cell for scores in columns.values() for cell in _cells(get(scores), pattern)]
        table.add_row(metric, *cells)
    counts: dict[str, Callable[[Scores], int | None]] = {
        "tokens": lambda s: s.tokens,
        "bytes": lambda s: s.text_bytes,
        "documents": lambda s: s.documents,
    }
    for name, count in counts.items():
        values = [count(scores) for scores in columns.values()]
        table.add_row(name, *(cell for v in values for cell in ("n/a" if v is None else f"{v:,}", "")))
    return table


def evaluation_note(record: EvaluationRecord) -> str:
    """How it was measured, in a sentence."""
    how = (
        "packed as in training"
        if record.stride is None
        else f"each document by itself, by strides of {record.stride:,}"
    )
    return (
        f"In windows of {record.seq_len:,} tokens, {how}, {record.batch_size:,} at once on {record.device}: "
        f"{record.tokens_per_s:,.0f} tokens/s."
    )


def _cells(estimate: Estimate | None, pattern: str) -> tuple[str, str]:
    if estimate is None:
        return "n/a", ""
    if estimate.low is None or estimate.high is None:
        return pattern.format(estimate.value), "n/a"
    return pattern.format(estimate.value), f"{pattern.format(estimate.low)} … {pattern.format(estimate.high)}"


def export_table(record: ExportRecord) -> Table:
    """What was written, and where."""
    table = figures_table("exported")
    table.add_row("folder", record.folder)
    table.add_row("preset", record.preset)
    table.add_row("step", "n/a" if record.step is None else f"{record.step:,}")
    table.add_row("parameters", f"{record.parameters:,} ({human_count(record.parameters)})")
    code = ", colakit's code among them" if record.is_standalone else ""
    table.add_row("files", f"{len(record.files)}{code}")
    return table


def tasks_table(record: TasksRecord) -> Table:
    """The harness's scores, a metric a row."""
    step = f", step {record.step:,}" if record.step is not None else ""
    table = new_table(f"{record.model}{step}, by lm-evaluation-harness {record.harness}")
    for name in ("task", "metric"):
        add_name_column(table, name)
    for name in ("value", "± stderr", "examples", "shots"):
        add_number_column(table, name)
    for s in record.scores:
        stderr = "n/a" if s.stderr is None else f"{s.stderr:.4f}"
        examples = "" if s.examples is None else f"{s.examples:,}"
        table.add_row(s.task, s.metric, f"{s.value:.4f}", stderr, examples, str(s.shots))
    return table
