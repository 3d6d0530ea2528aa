"""What `bench --max-batch` shows: the largest batch of each preset, every try, and the settings to train with."""

from collections.abc import Iterator

from rich.table import Table

from colakit.records.bench import MaxBatchRecord, MaxBatchReport
from colakit.report.runs import figure
from colakit.report.tables import add_name_column, add_number_column, add_text_column, new_table


def max_batch_table(report: MaxBatchReport) -> Table:
    """What was predicted and what was found, in sequences."""
    first = report.results[0]
    table = new_table(f"largest batch: {first.device}, attention {first.attention}")
    add_name_column(table, "")
    columns = ("tokens", "limit, GiB", "by the ledger", "predicted", "found", "predicted / found", "paper", "peak, GiB")
    for column in (*columns, "steps"):
        add_number_column(table, column)
    for r in report.results:
        table.add_row(
            f"{r.preset}, compiled" if r.compiled else r.preset,
            str(r.seq_len),
            f"{r.limit_gib:.2f}",
            str(r.by_ledger),
            str(r.predicted),
            figure(r.max_batch, "{:d}" if r.is_bounded else "≥ {:d}"),
            figure(r.predicted / r.max_batch if r.max_batch and r.is_bounded else None, "{:.2f}"),
            "" if r.claim is None else f"{r.claim.value:g}",
            figure(r.peak_gib, "{:.2f}"),
            figure(r.steps, "{:d}"),
        )
    return table


def probe_table(report: MaxBatchReport) -> Table:
    """Every try, in order."""
    table = new_table("tries, each in a process of its own")
    add_name_column(table, "")
    for column in ("sequences", "steps", "peak, GiB", "s"):
        add_number_column(table, column)
    add_text_column(table, "")
    for r in report.results:
        for p in r.probes:
            cells = (str(p.batch_size), str(p.steps), figure(p.peak_gib, "{:.2f}"), f"{p.seconds:.1f}")
            table.add_row(r.preset, *cells, "fits" if p.fits else p.reason or f"held more than {_allowed(r):.2f} GiB")
    return table


def max_batch_notes(report: MaxBatchReport) -> Iterator[str]:
    """The settings to use, the margin, and why a search has no result or ended early."""
    for r in report.results:
        if r.reason:
            yield f"{r.preset}: {r.reason}."
        if r.max_batch is None or r.micro_batch_size is None:
            continue
        n_micro = r.batch_size // r.micro_batch_size
        parts = "at once" if n_micro == 1 else f"in {n_micro} micro-batches"
        settings = f"--set train.batch_size={r.batch_size}"
        settings += f" --set train.micro_batch_size={r.micro_batch_size}"
        yield f"{r.preset}, {r.batch_size} sequences a step {parts}: {settings}"
        if r.max_batch != r.batch_size:
            how_many = "as many as fit at once" if r.is_bounded else "as many as were seen to fit at once"
            settings = f"--set train.batch_size={r.max_batch} --set train.micro_batch_size={r.max_batch}"
            yield f"{r.preset}, {how_many}: {settings}"
    if report.results:
        margin = report.results[0].margin_frac
        yield f"All tries keep {100 * margin:g} % of the limit free. The paper's figures are of 24 GB."


def _allowed(r: MaxBatchRecord) -> float:
    return (1.0 - r.margin_frac) * r.limit_gib
