"""``colakit runs``."""

from pathlib import Path
from typing import Annotated

import typer

from colakit.cli import options
from colakit.report.runs import runs_table
from colakit.report.tables import print_json, print_table


def runs(
    folder: Annotated[Path, typer.Argument(help="The folder that the runs are in, or one of them.")] = Path("runs"),
    json: options.Json = False,
) -> None:
    """List runs: how far each has come, its state, and the command that resumes it."""
    from colakit.train.listing import list_runs

    listings = list_runs(folder)
    if json:
        print_json({"kind": "runs", "runs": [listing.to_dict() for listing in listings]})
    else:
        print_table(runs_table(listings))
