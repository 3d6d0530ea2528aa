"""``colakit eval``."""

from pathlib import Path
from typing import Annotated

import typer

from colakit.cli import options
from colakit.report.runs import eval_table
from colakit.report.tables import print_json, print_table

MovedData = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="data.path=PATH",
        help="Where its data lies by now; of a named source, data.sources.NAME.path.",
        show_default=False,
    ),
]


def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.", show_default=False)],
    sets: MovedData = None,
    json: options.Json = False,
) -> None:
    """Evaluate a saved run on its held-out split."""
    from colakit.train.saved import evaluate_run

    record = evaluate_run(run, sets or [])
    if json:
        print_json(record.to_dict())
    else:
        print_table(eval_table(record))
