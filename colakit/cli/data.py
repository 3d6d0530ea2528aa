"""``colakit data``: prepare what a run reads, and look at it, before anything is trained."""

import typer

from colakit.cli import options
from colakit.config.load import resolve
from colakit.records.data import DataRecord
from colakit.report.data import bad_record_notes, lengths_table, samples_text, sources_table, stages_table
from colakit.report.progress import preparation_bar
from colakit.report.tables import print_json, print_note, print_table, stderr_console, stdout_console

app = typer.Typer(help="Prepare a preset's data, and look at it.", no_args_is_help=True)


@app.command()
def prepare(
    preset: options.Preset = options.DEFAULT_PRESET,
    smoke: options.Smoke = False,
    data: options.Data = None,
    on_bad_record: options.OnBadRecord = None,
    sets: options.Sets = None,
    json: options.Json = False,
) -> None:
    """Read, tokenise and cache the data of a preset; what an interrupted call finished is kept."""
    record = _prepared(preset, smoke, data, options.with_bad_records(sets, on_bad_record))
    if json:
        print_json(record.to_dict())
        return
    print_table(sources_table(record))
    for note in bad_record_notes(record):
        print_note(note)
    print_note(f"In {record.folder}, under fingerprint {record.fingerprint}.")


@app.command("inspect")
def inspect_(
    preset: options.Preset = options.DEFAULT_PRESET,
    smoke: options.Smoke = False,
    data: options.Data = None,
    on_bad_record: options.OnBadRecord = None,
    sets: options.Sets = None,
    json: options.Json = False,
) -> None:
    """Show documents, tokens, lengths, padding, stages and decoded samples; prepares the data where it is not."""
    record = _prepared(preset, smoke, data, options.with_bad_records(sets, on_bad_record))
    if json:
        print_json(record.to_dict())
        return
    print_table(sources_table(record))
    print_table(stages_table(record))
    for source in record.sources:
        print_table(lengths_table(source))
    for note in bad_record_notes(record):
        print_note(note)
    stdout_console().print(samples_text(record), soft_wrap=True)


def _prepared(preset: str, smoke: bool, data: str | None, sets: list[str]) -> DataRecord:
    resolved = resolve(preset, smoke_run=smoke, data=data, sets=sets)
    for note in resolved.notes:
        print_note(note, stderr_console())
    from colakit.data.prepare import prepare as prepare_data
    from colakit.train.inspection import inspect_data

    config = resolved.config
    with preparation_bar() as bar:
        prepared = prepare_data(
            config.data, seq_len=config.model.seq_len, vocab_size=config.model.vocab_size, watch=bar
        )
    return inspect_data(config, prepared)
