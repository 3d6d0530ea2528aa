"""Options that several commands share, with one wording each."""

from pathlib import Path
from typing import Annotated, Literal

import typer

DEFAULT_PRESET = "cola-fan-muon"

_CONFIGURATION = "Configuration"

Preset = Annotated[
    str,
    typer.Option(
        "--preset",
        "-p",
        metavar="NAME|FILE.toml",
        help="A row of the paper (see `colakit presets`), or a preset file of your own.",
        rich_help_panel=_CONFIGURATION,
    ),
]

Presets = Annotated[
    list[str] | None,
    typer.Option(
        "--preset",
        "-p",
        metavar="NAME|FILE.toml",
        help="A preset or a preset file; may be repeated. Without it: every preset.",
        rich_help_panel=_CONFIGURATION,
        show_default=False,
    ),
]

Smoke = Annotated[
    bool,
    typer.Option(
        "--smoke",
        help="Shrink the preset to what two CPU cores train in about two minutes, keeping its kind.",
        rich_help_panel=_CONFIGURATION,
    ),
]

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Read a file, folder or glob of .txt, .jsonl(.gz, .zst) or .parquet instead of the preset's data.",
        rich_help_panel=_CONFIGURATION,
        show_default=False,
    ),
]

OnBadRecord = Annotated[
    Literal["fail", "skip"] | None,
    typer.Option(
        "--on-bad-record",
        help="What a line or record that cannot be read does: end the command (the default), or be counted and listed.",
        rich_help_panel=_CONFIGURATION,
        show_default=False,
    ),
]


def with_bad_records(sets: list[str] | None, on_bad_record: str | None) -> list[str]:
    """The ``--set`` strings, with what ``--on-bad-record`` stands for."""
    return [*(sets or []), *([f"data.on_bad_record={on_bad_record}"] if on_bad_record else [])]


Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override one field, as in train.max_steps=100; may be repeated (see `colakit presets show`).",
        rich_help_panel=_CONFIGURATION,
        show_default=False,
    ),
]

Model = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|CHECKPOINT|FOLDER",
        help="The folder of a run, of one of its checkpoints, or of an exported model.",
        show_default=False,
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on the standard output.")]

Plot = Annotated[
    Path | None,
    typer.Option(
        "--plot", metavar="FILE.svg|png", help="Also draw the components as stacked bars.", show_default=False
    ),
]

MAX_SIZE = 2**24
"""The largest size a command takes, as a configuration does."""

MemoryBatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        max=MAX_SIZE,
        metavar="B",
        help="With --memory: sequences of one forward pass; the preset's micro-batch unless given.",
        show_default=False,
    ),
]

MemorySeqLen = Annotated[
    int | None,
    typer.Option(
        "--seq-len",
        min=1,
        max=MAX_SIZE,
        metavar="T",
        help="With --memory: tokens of a sequence; the preset's unless given.",
        show_default=False,
    ),
]
