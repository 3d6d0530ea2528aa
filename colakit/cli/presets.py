"""``colakit presets``: what can be trained; ``colakit presets show``: every resolved value and where it came from."""

import json
from typing import Annotated

import typer

from colakit.cli import options
from colakit.config.fields import known_fields
from colakit.config.load import Resolved, resolve
from colakit.config.presets import load_preset, preset_names
from colakit.report.tables import add_name_column, add_text_column, new_table, print_json, print_note, print_table

app = typer.Typer(help="List the presets, one per row of the paper.", invoke_without_command=True)


@app.callback()
def list_presets(context: typer.Context, json: options.Json = False) -> None:
    """List the presets, one per row of the paper; `presets show NAME` prints one in full."""
    if context.invoked_subcommand is not None:
        if json:
            raise typer.BadParameter("put it last, as in `colakit presets show NAME --json`.", param_hint="--json")
        return
    presets = [load_preset(name) for name in preset_names()]
    if json:
        listed = [{"name": p.name, "paper_row": p.about.paper, "summary": p.about.summary} for p in presets]
        print_json({"presets": listed})
        return
    table = new_table("Presets")
    add_name_column(table, "preset")
    add_text_column(table, "row of the paper")
    add_text_column(table, "what it is")
    for preset in presets:
        table.add_row(preset.name, preset.about.paper, preset.about.summary)
    print_table(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE.toml", help="A preset, or a preset file of your own.")],
    smoke: options.Smoke = False,
    data: options.Data = None,
    sets: options.Sets = None,
    json: options.Json = False,
) -> None:
    """Print every field's resolved value, and where it came from."""
    about = load_preset(name).about
    resolved = resolve(name, smoke_run=smoke, data=data, sets=sets or ())
    values = _values(resolved)
    if json:
        fields = {field: {"value": value, "origin": resolved.origins[field]} for field, value in values.items()}
        head = {"preset": resolved.config.preset, "paper": about.paper, "summary": about.summary}
        print_json({**head, "fields": fields, "notes": list(resolved.notes)})
        return
    table = new_table(resolved.config.preset)
    add_name_column(table, "field")
    add_text_column(table, "value")
    add_name_column(table, "from")
    for field, value in values.items():
        table.add_row(field, as_set_takes_it(value), resolved.origins[field])
    print_note(f"{about.summary} (paper: {about.paper})")
    print_table(table)
    for note in (*resolved.notes, *_unset_notes(values)):
        print_note(note)


def _values(resolved: Resolved) -> dict[str, object]:
    """Dotted field → resolved value."""
    sections = resolved.config.model_dump(exclude={"preset"})
    return {f"{section}.{key}": value for section, fields in sections.items() for key, value in fields.items()}


def _unset_notes(values: dict[str, object]) -> list[str]:
    """What an unset field stands for, where its description says so."""
    described = ((field, known_fields()[field].description or "") for field, value in values.items() if value is None)
    meanings = ((field, text.partition("unset: ")[2]) for field, text in described)
    return [f"{field} is unset: {meaning}." for field, meaning in meanings if meaning]


def as_set_takes_it(value: object) -> str:
    """A value in the words ``--set`` reads: `none` for an unset field, `true` and `false`, bare strings."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else _toml(value)


def _toml(value: object) -> str:
    """A value inside a TOML document; what is unset is left out of a table."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_toml(inner)}' for key, inner in value.items() if inner is not None)}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else str(value)
