"""``colakit export``."""

from pathlib import Path
from typing import Annotated

import typer

from colakit.cli import options
from colakit.report.evaluation import export_table
from colakit.report.tables import print_json, print_note, print_table


def export(
    model: options.Model,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write.", show_default=False)],
    standalone: Annotated[
        bool, typer.Option("--standalone", help="Bring colakit's code along, for machines where it is not installed.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Write a trained model and its tokenizer as a folder that `transformers` loads."""
    from colakit.hf.export import export as write
    from colakit.opening import open_own

    record = write(open_own(model, "It can be used as it is."), out, standalone=standalone)
    if json:
        print_json(record.to_dict())
        return
    print_table(export_table(record))
    how = "trust_remote_code=True" if standalone else "`import colakit.hf` before"
    print_note(f'Loads with AutoModelForCausalLM.from_pretrained("{out}") and {how}.')
