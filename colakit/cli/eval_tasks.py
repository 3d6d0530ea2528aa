"""``colakit eval --tasks``."""

from pathlib import Path

from colakit.report.evaluation import tasks_table
from colakit.report.tables import print_json, print_table


def show_tasks(model: Path, tasks: str, limit: int | None, batch_size: int | None, json: bool) -> None:
    """Have the harness score `model`, and show what it found."""
    from colakit.hf.harness import check_harness, run_tasks
    from colakit.opening import open_model

    check_harness(tasks)
    record = run_tasks(open_model(model), tasks, limit=limit, batch_size=batch_size)
    if json:
        print_json(record.to_dict())
    else:
        print_table(tasks_table(record))
