"""``colakit eval``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from colakit.cli import options
from colakit.cli.eval_spectrum import check_spectrum, show_spectrum
from colakit.cli.eval_tasks import show_tasks
from colakit.config.schema import DataConfig
from colakit.errors import CheckpointError, ConfigError, Problem
from colakit.report.evaluation import evaluation_note, evaluation_table
from colakit.report.figures import check_figure
from colakit.report.progress import counting_bar, preparation_bar
from colakit.report.tables import print_json, print_note, print_table

if TYPE_CHECKING:
    from colakit.evaluate.foreign import ForeignModel
    from colakit.evaluate.text import Text
    from colakit.train.saved import SavedModel

Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="data.KEY=VALUE",
        help="Where a run's data lies by now (data.path, data.sources.NAME.path); or with --data, how a text is read.",
        show_default=False,
    ),
]


def evaluate(
    model: options.Model,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|RUN",
            help="A text to read whole: file, folder or glob as for `train`; or a run, for its held-out split.",
            show_default=False,
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Read each document by itself, and a long one in windows that overlap but for so many tokens.",
            show_default=False,
        ),
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of a window. Default: the model's whole context, of another library's model at most 2048.",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="The whole held-out split, not only train.eval_tokens of it.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows at once. Default: as many as fit.", show_default=False)
    ] = None,
    spectrum: Annotated[
        bool, typer.Option("--spectrum", help="The effective rank of activations instead (Figure 3).")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg|png", help="With --spectrum: also draw it.", show_default=False),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.yaml,…",
            help="Tasks of lm-evaluation-harness instead, by name or file (needs the extra eval).",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="With --tasks: only so many examples of each.", show_default=False)
    ] = None,
    on_bad_record: options.OnBadRecord = None,
    sets: Sets = None,
    json: options.Json = False,
) -> None:
    """Evaluate a trained model: on its held-out split, on another text, or on tasks; or look at its activations."""
    if data == "":
        raise ConfigError([Problem("--data", data, "it names nothing", "Give a path, or leave it out.")])
    sets = options.with_bad_records(sets, on_bad_record)
    _check_options(
        tasks, spectrum, plot, data=data, stride=stride, seq_len=seq_len, everything=everything, limit=limit, sets=sets
    )
    if tasks is not None:
        show_tasks(model, tasks, limit, batch_size, json)
        return
    from colakit.opening import open_model

    opened = open_model(model)
    if spectrum:
        check_spectrum(opened)
    text, max_tokens = _text(opened, data, sets)
    max_tokens = None if everything else max_tokens
    if spectrum:
        show_spectrum(opened, text, max_tokens, batch_size, plot, json)
        return
    from colakit.evaluate.evaluation import evaluate_text

    length = seq_len or opened.seq_len
    sizes = {"--seq-len": (seq_len, opened.context), "--stride": (stride, length)}
    problems = [
        Problem(flag, asked, f"a window holds {most} tokens at most", "Give no more than that.")
        for flag, (asked, most) in sizes.items()
        if asked is not None and asked > most
    ]
    if problems:
        raise ConfigError(problems)
    with counting_bar("scoring", "windows") as watch:
        record = evaluate_text(
            opened.subject(),
            text,
            seq_len=length,
            stride=stride or opened.stride(length),
            max_tokens=max_tokens,
            batch_size=batch_size or opened.fitting_batch(length),
            watch=watch,
        )
    if json:
        print_json(record.to_dict())
        return
    print_table(evaluation_table(record))
    print_note(evaluation_note(record))


def _check_options(tasks: str | None, spectrum: bool, plot: Path | None, **others: object) -> None:
    """Refuse what the chosen kind of evaluation would ignore."""
    kind = "--tasks" if tasks is not None else "--spectrum" if spectrum else None
    ignored = {None: ("limit",), "--spectrum": ("stride", "seq_len", "limit"), "--tasks": _NOT_FOR_TASKS}[kind]
    flags = {"everything": "--all", "sets": "--set"}
    problems = [
        Problem(
            flags.get(name, f"--{name.replace('_', '-')}"), others[name], f"not used {_WITH[kind]}", "Leave it out."
        )
        for name in ignored
        if others[name]
    ]
    if tasks is not None and spectrum:
        problems.append(Problem("--spectrum", True, "not used with --tasks", "Leave one of them out."))
    if plot is not None and not spectrum:
        problems.append(Problem("--plot", str(plot), "draws what --spectrum finds", "Add --spectrum."))
    if problems:
        raise ConfigError(problems)
    if plot is not None:
        check_figure(plot)


_NOT_FOR_TASKS = ("data", "stride", "seq_len", "everything", "sets")
_WITH = {None: "without --tasks", "--spectrum": "with --spectrum", "--tasks": "with --tasks"}


def _text(opened: "SavedModel | ForeignModel", data: str | None, sets: list[str]) -> tuple["Text", int | None]:
    """What the model is scored on, and how many targets of it; None: all."""
    from colakit.evaluate.foreign import ForeignModel
    from colakit.evaluate.text import held_out_text, whole_text
    from colakit.train.saved import config_of_run, held_out_for, held_out_of, text_at

    with preparation_bar() as bar:
        if data is None:
            if isinstance(opened, ForeignModel):
                raise CheckpointError(
                    f"{opened.place} does not say what it was trained on. Give a text to evaluate on, or a run, "
                    "for its held-out split: --data PATH|RUN."
                )
            held_out = held_out_of(opened, sets, watch=bar)
            return held_out_text(held_out, opened.config.data), opened.config.train.eval_tokens
        if (config := config_of_run(data)) is not None:
            if sets:
                raise ConfigError([Problem("--set", sets[0], f"{data} says what its data is", "Leave it out.")])
            sizes = {"seq_len": opened.seq_len, "vocab_size": opened.vocab_size}
            prepared = held_out_for(config, opened.tokenizer_folder, **sizes, watch=bar)
            return held_out_text(prepared, config.data), config.train.eval_tokens
        like = DataConfig() if isinstance(opened, ForeignModel) else opened.config.data
        return whole_text(text_at(data, like, sets), opened.tokenizer, watch=bar), None
