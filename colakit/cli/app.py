"""The `colakit` command: assembles the subcommands and turns the user's errors into one message and exit code 2.

Command modules import no torch at import time, so that ``--help``, `flops`, `params` and `presets` answer at once.
"""

import errno
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from colakit import __version__
from colakit.cli import bench, data, presets
from colakit.cli.doctor import doctor
from colakit.cli.evaluate import evaluate
from colakit.cli.export import export
from colakit.cli.flops import flops
from colakit.cli.generate import generate
from colakit.cli.info import info
from colakit.cli.paper import paper
from colakit.cli.params import params
from colakit.cli.runs import runs
from colakit.cli.shared import Launched
from colakit.cli.train import train
from colakit.errors import ColakitError, RunError
from colakit.parallel.environment import place
from colakit.report.tables import stderr_console

_INTERRUPTED = 130
"""What Typer makes of Ctrl-C, without a word."""

app = typer.Typer(
    name="colakit",
    help="Train and measure compact transformers: one preset per row of the paper.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they would print whole tensors
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"colakit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train and measure compact transformers: one preset per row of the paper."""
    n = place().world_size
    if n > 1 and context.invoked_subcommand != "train":
        if not place().is_main:
            raise SystemExit(2)
        own = " `colakit bench --nproc N` starts its own." if context.invoked_subcommand == "bench" else ""
        raise RunError(
            f"A launcher has started {n} processes, and `colakit train` is the only command that they can share. "
            f"Start this one without the launcher.{own}"
        )


# In the order of `colakit --help`.
app.command()(train)
app.command()(runs)
app.command()(info)
app.command("eval")(evaluate)
app.command()(generate)
app.command()(export)
app.add_typer(bench.app, name="bench")
app.command()(doctor)
app.command()(flops)
app.command()(params)
app.command()(paper)
app.add_typer(data.app, name="data")
app.add_typer(presets.app, name="presets")  # groups: Typer lists them after all plain commands


def _log_to_stderr() -> None:
    """Show colakit's own log, and no other library's: those have handlers of their own."""
    logger = logging.getLogger("colakit")
    logger.setLevel(logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]


def _whose() -> str:
    """Which of several processes speaks, where it is not the main one."""
    try:
        here = place()
    except ColakitError:
        return ""
    return "" if here.is_main else f"Process {here.global_rank}: "


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line `args` (unset: the process's own) and exit: 0, 2 for the user's errors, 1 for ours.

    A `ColakitError` becomes its message on the standard error; any other exception leaves a traceback.
    """
    if "WORLD_SIZE" not in os.environ:
        _run(args)
        return
    code: object = 0
    try:
        _run(args)
    except SystemExit as ending:
        code = ending.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    # Without Python's own end: threads of gloo may hold objects of it, and end the process with a signal then.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _run(args: Sequence[str] | None) -> None:
    # A process may be started with its standard streams closed.
    sys.stdout, sys.stderr = (
        stream or Path(os.devnull).open("w")  # noqa: SIM115  (as long as the process lives)
        for stream in (sys.stdout, sys.stderr)
    )
    _log_to_stderr()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows ? instead of failing
    try:
        app(args=args, prog_name="colakit", obj=list(sys.argv[1:] if args is None else args))
    except ColakitError as error:
        message = Text.assemble(("Error: ", "bold red"), _whose(), str(error))
        stderr_console().print(message, soft_wrap=True)
        sys.exit(2)
    except SystemExit as ending:
        if ending.code == _INTERRUPTED and not (_whose() or isinstance(ending, Launched)):
            stderr_console().print("Interrupted.")
        raise
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        # Of what is written without a name, the standard output is what the commands do not answer for themselves.
        stderr_console().print(Text(f"Error: the output cannot be written: {error.strerror}."), soft_wrap=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else it fails again at exit
        sys.exit(2)
