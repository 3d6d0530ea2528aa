"""A command that several processes share: started by ``--nproc`` or by torchrun, it runs once in each of them."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from colakit.config.load import override
from colakit.config.rules import check_divides
from colakit.config.schema import RunConfig
from colakit.errors import ColakitError, ConfigError, Problem
from colakit.parallel.environment import Place

log = logging.getLogger(__name__)

MEASURED_BY_BENCH = "Leave it out; `colakit bench --nproc N` measures what several have, docs/scaling.md counts it."

if TYPE_CHECKING:  # they come with torch
    from colakit.parallel.world import World
    from colakit.train.resume import Resumption


class Launched(SystemExit):
    """Ends the process that has started others as they have ended, which have said why."""


def check_nproc(nproc: int, place: Place) -> None:
    """Raise ConfigError where ``--nproc`` says another number than the launcher that started this process."""
    if nproc not in (1, place.local_world_size):
        rule = f"a launcher has started {place.local_world_size} processes on this machine"
        raise ConfigError([Problem("--nproc", nproc, rule, "Leave it out.")])


def refuse_idle(sets: Sequence[str], fix: str = "Leave it out, or add --nproc N.") -> None:
    """Raise ConfigError for ``--set`` strings that say how several processes share what one has alone."""
    idle = [item for item in sets if item.strip().startswith("parallel.")]
    if idle:
        rule = "there is one process, so this would have no effect"
        raise ConfigError([Problem("--set", item, rule, fix) for item in idle])


def launch_job(context: typer.Context, nproc: int, config: RunConfig | None) -> None:
    """Run the command line again in `nproc` processes, and exit as they do; `config` where it is known before."""
    from colakit.host import usable_cpus
    from colakit.parallel.world import check_built

    wanted = config or RunConfig()
    check_built(wanted.parallel.strategy, wanted.train.device)
    from colakit.parallel.launch import check_gpus, launch

    if config is not None:
        check_divides(config, nproc)
        check_gpus(nproc, config.train.device)
    if nproc > (cpus := usable_cpus()):
        log.warning("%d processes share %d CPUs, and wait for each other.", nproc, cpus)
    raise Launched(launch(nproc, context.find_root().obj, threads=max(1, cpus // nproc)))


@contextmanager
def common_errors(place: Place) -> Iterator[None]:
    """Inside, what goes wrong goes wrong in every process alike: the main one tells of it."""
    try:
        yield
    except ColakitError:
        if place.is_main:
            raise
        raise SystemExit(2) from None


@contextmanager
def meeting(place: Place) -> Iterator[None]:
    """Inside, this process has met those it shares the command with, if there are any."""
    if place.world_size == 1:
        yield
        return
    import torch.distributed as dist

    from colakit.parallel.world import join

    if not place.is_main:
        logging.getLogger("colakit").setLevel(logging.ERROR)
    join(place)
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_of(config: RunConfig, place: Place) -> "World":
    """The processes that share the run of `config`."""
    from colakit.parallel.world import ALONE, check_built, group_of

    if place.world_size == 1:
        return ALONE
    check_built(config.parallel.strategy, config.train.device)
    return group_of(range(place.world_size), timeout_s=config.parallel.timeout_s)


def shared_resumption(path: Path, sets: Sequence[str], place: Place) -> "Resumption":
    """How to go on with the run at `path`: found by the main process, whose lock it has, and told to all.

    Raises as `plan_resumption`.
    """
    from colakit.train.resume import plan_resumption
    from colakit.train.runs import RunFolder

    def plan() -> "Resumption | None":
        return plan_resumption(path, lambda stored: override(stored, sets)) if place.is_main else None

    if place.world_size == 1:
        alone = plan()
        assert alone is not None
        return alone
    world = world_of(RunConfig(), place)
    with world.watched(lambda: "No step was made."):
        own = world.main_first(plan)
    # Without the lock, which is the main process's alone.
    sent = own and replace(own, folder=RunFolder(own.folder.root, own.folder.there))
    told = world.agree(sent)
    assert told is not None
    return own or told
