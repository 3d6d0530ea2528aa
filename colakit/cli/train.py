"""``colakit train``."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from colakit.cli import options
from colakit.cli.shared import check_nproc, common_errors, launch_job, meeting, refuse_idle, shared_resumption, world_of
from colakit.config.load import resolve
from colakit.config.schema import RunConfig
from colakit.errors import RunError
from colakit.parallel.environment import Place, place
from colakit.report.lasting import lasting_console
from colakit.report.progress import preparation_bar
from colakit.report.runs import proof_table, proof_verdict, sample_text, summary_table
from colakit.report.tables import print_json, print_note, print_table

if TYPE_CHECKING:
    from colakit.train.resume import Resumption

log = logging.getLogger(__name__)


def train(
    context: typer.Context,
    preset: options.Preset = options.DEFAULT_PRESET,
    smoke: options.Smoke = False,
    data: options.Data = None,
    on_bad_record: options.OnBadRecord = None,
    sets: options.Sets = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<preset>-<time>.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN|CHECKPOINT",
            help="Go on with a run, from its newest checkpoint or from this one.",
            show_default=False,
        ),
    ] = None,
    verify_resume: Annotated[
        bool, typer.Option("--verify-resume", help="Prove, in a few steps, that this run can be resumed exactly.")
    ] = False,
    nproc: Annotated[
        int,
        typer.Option(
            "--nproc",
            min=1,
            max=1024,
            help="Processes on this machine that share the run; on CUDA each has a GPU. How: --set parallel.strategy= "
            "ddp (unless given), zero1 or fsdp2.",
        ),
    ] = 1,
    json: options.Json = False,
) -> None:
    """Train a preset, or go on with a run; Ctrl-C once finishes the step, saves and summarises."""
    here = place()
    all_sets = options.with_bad_records(sets, on_bad_record)
    is_shared = max(nproc, here.world_size) > 1
    with common_errors(here):
        _check_combination(context, resume=resume, out=out, verify_resume=verify_resume, is_shared=is_shared)
        check_nproc(nproc, here) if here.world_size > 1 else None
        refuse_idle(all_sets) if not is_shared else None
        resolved = resolve(preset, smoke_run=smoke, data=data, sets=all_sets) if resume is None else None
    if nproc > 1 and here.world_size == 1:
        launch_job(context, nproc, resolved.config if resolved is not None else None)
    with meeting(here):
        if resolved is None:
            assert resume is not None
            resumption = shared_resumption(resume, all_sets, here)
            _train(resumption.config, here, resume=resumption, json=json)
            return
        for note in resolved.notes:
            log.info(note)
        if verify_resume:
            _verify_resume(resolved.config, json=json)
        else:
            _train(resolved.config, here, out=out, json=json)


def _check_combination(
    context: typer.Context, *, resume: Path | None, out: Path | None, verify_resume: bool, is_shared: bool
) -> None:
    if verify_resume and (resume is not None or out is not None):
        raise RunError("--verify-resume makes runs of its own and leaves none. Leave --resume and --out out.")
    if verify_resume and is_shared:
        raise RunError("--verify-resume proves it of one process. Leave --nproc out.")
    if resume is None:
        return
    options_of_new_runs = {"--preset": "preset", "--smoke": "smoke", "--data": "data", "--out": "out"}
    if given := [option for option, name in options_of_new_runs.items() if _is_given(context, name)]:
        raise RunError(
            f"A resumed run has its own configuration and folder. Leave out {', '.join(given)}; --set changes what "
            "may change, as --set data.path=PATH where the data has moved."
        )


def _train(
    config: RunConfig, here: Place, *, out: Path | None = None, resume: "Resumption | None" = None, json: bool
) -> None:
    """Train, or go on with `resume`; the main process prints the summary."""
    from colakit.data.tokenise import unwatched
    from colakit.train.metrics import last_records
    from colakit.train.runs import RunFolder, resume_command
    from colakit.train.sinks import ConsoleSink, JsonlSink, Sink, SinkSet, TensorBoardSink
    from colakit.train.trainer import Trainer

    console = lasting_console(stderr=json)
    max_steps = config.train.max_steps

    def sinks(folder: RunFolder) -> Sink:
        behind = resume.totals.steps if resume is not None else 0
        board = TensorBoardSink(folder.tensorboard, behind=behind, again=last_records(folder.metrics))
        return SinkSet([JsonlSink(folder.metrics), board, ConsoleSink(console, max_steps)])

    world = world_of(config, here)
    with preparation_bar() if here.is_main else nullcontext(unwatched) as bar:
        trainer = Trainer(config, out=out, sinks=sinks, watch=bar, resume=resume, world=world, place=here)
    summary = trainer.fit()
    if summary is None:  # this process is not the main one
        return
    if json:
        print_json(summary.to_dict())
        return
    print_table(summary_table(summary), console)
    if config.train.sample_tokens:
        console.print(sample_text(summary), soft_wrap=True)
    if summary.interrupted:
        console.print(
            f"`{resume_command(Path(summary.run_dir), here.world_size, here.machines)}` goes on.", soft_wrap=True
        )


def _verify_resume(config: RunConfig, *, json: bool) -> None:
    from colakit.train.verify import verify_resume

    proof = verify_resume(config)
    if json:
        print_json(proof.to_dict())
    else:
        print_table(proof_table(proof))
        print_note(proof_verdict(proof))
    if not proof.is_exact:
        raise typer.Exit(1)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
