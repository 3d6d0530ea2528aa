"""``colakit info``."""

from pathlib import Path
from typing import Annotated

import typer

from colakit.cli import options
from colakit.report.info import checkpoints_table, info_table, tensors_table
from colakit.report.tables import print_json, print_table


def info(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|CHECKPOINT|FOLDER", help="A run, one of its checkpoints, or a folder in transformers' format."
        ),
    ],
    tensors: Annotated[
        bool,
        typer.Option(
            "--tensors",
            help="List every tensor; else a run's are not shown, and those alike in all blocks are one row.",
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Tell what a run, a checkpoint or a model is, without loading it.

    Checkpoints are compared with their manifests by the sizes of their files. Their contents are not: resuming and
    `colakit eval` do that before they read any.
    """
    from colakit.train.info import describe

    record = describe(path, each_tensor=tensors)
    if json:
        print_json(record.to_dict())
        return
    print_table(info_table(record))
    if record.checkpoints:
        print_table(checkpoints_table(record))
    if record.tensors and (tensors or record.what != "run"):
        print_table(tensors_table(record))
