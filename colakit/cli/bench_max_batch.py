"""``colakit bench --max-batch``."""

from colakit.config.schema import RunConfig
from colakit.records.bench import MaxBatchReport
from colakit.report.max_batch import max_batch_notes, max_batch_table, probe_table
from colakit.report.progress import budget_bar
from colakit.report.tables import print_note, print_table


def find_max_batch(configs: list[RunConfig], *, memory_gib: float | None, budget_s: float) -> MaxBatchReport:
    """Search the largest batch of each, with a bar on a terminal."""
    from colakit.bench.run import run_max_batch

    with budget_bar(budget_s) as watch:
        return run_max_batch(configs, memory_gib=memory_gib, budget_s=budget_s, watch=watch)


def print_max_batch(report: MaxBatchReport) -> None:
    """What was found, every try, and the settings to train with."""
    print_table(max_batch_table(report))
    print_table(probe_table(report))
    for note in max_batch_notes(report):
        print_note(note)
