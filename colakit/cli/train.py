"""``colakit train``."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from colakit.cli import options
from colakit.config.load import resolve
from colakit.report.progress import preparation_bar
from colakit.report.runs import sample_text, summary_table
from colakit.report.tables import RunConsole, print_json, print_table

log = logging.getLogger(__name__)


def train(
    preset: options.Preset = options.DEFAULT_PRESET,
    smoke: options.Smoke = False,
    data: options.Data = None,
    on_bad_record: options.OnBadRecord = None,
    sets: options.Sets = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<preset>-<time>.")] = None,
    json: options.Json = False,
) -> None:
    """Train a preset; Ctrl-C once finishes the step, saves and summarises."""
    resolved = resolve(preset, smoke_run=smoke, data=data, sets=options.with_bad_records(sets, on_bad_record))
    for note in resolved.notes:
        log.info(note)
    from colakit.train.sinks import ConsoleSink, JsonlSink, SinkSet, TensorBoardSink
    from colakit.train.trainer import Trainer

    console = RunConsole(stderr=json, highlight=False, markup=False, emoji=False)
    with preparation_bar() as bar:
        trainer = Trainer(
            resolved.config,
            out=out,
            sinks=lambda folder: SinkSet(
                [
                    JsonlSink(folder.metrics),
                    TensorBoardSink(folder.tensorboard),
                    ConsoleSink(console, resolved.config.train.max_steps),
                ]
            ),
            watch=bar,
        )
    summary = trainer.fit()
    if json:
        print_json(summary.to_dict())
        return
    print_table(summary_table(summary), console)
    console.print(sample_text(summary), soft_wrap=True)
