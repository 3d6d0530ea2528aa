"""The start of a run, new or resumed: what is refused before anything is made, and the folder that it goes to.

Of several processes each goes through all of it; the main one makes what is made.
"""

from collections.abc import Callable
from pathlib import Path

from colakit.build import Machine, pick_machine
from colakit.config.rules import check_divides
from colakit.config.schema import RunConfig
from colakit.data.prepare import PreparedData, check_sources
from colakit.errors import RunError
from colakit.parallel.environment import Place
from colakit.parallel.world import World
from colakit.train.moved import check_where_it_lies
from colakit.train.resume import Resumption
from colakit.train.runs import RunFolder, create_run, plan_run_folder
from colakit.train.sinks import Sink, SinkSet


def check_start(config: RunConfig, out: Path | None, resume: Resumption | None, world: World, place: Place) -> Machine:
    """What can be refused before the data is prepared. Raises the ColakitErrors of what it calls."""
    if world.is_main:
        if resume is None:
            plan_run_folder(out, config.preset)
            check_sources(config.data)
        else:
            resume.folder.lock.acquire()
            check_where_it_lies(config)
    check_divides(config, world.size)
    return pick_machine(config, place)


def check_same_everywhere(data: PreparedData, world: World) -> None:
    """Raise RunError where processes have prepared other data than the main one."""
    fingerprints = world.gather(data.fingerprint)
    others = [rank for rank, fingerprint in enumerate(fingerprints) if fingerprint != fingerprints[0]]
    if others:
        told = (
            f"Process {others[0]} reads other data than process 0. Give all of them the same files, and the same "
            "Python version for stdlib."
        )
        raise world.told(RunError(told))


def new_folder(
    config: RunConfig, out: Path | None, data: PreparedData, sinks: Callable[[RunFolder], Sink], world: World
) -> tuple[RunFolder, Sink]:
    """The folder of a new run, which the main process makes, and its sinks, which are nobody else's.

    Raises RunError where it cannot be made, or a process does not see it.
    """

    def create() -> tuple[RunFolder, Sink] | None:
        return create_run(out, config, data.describe(), sinks) if world.is_main else None

    made = world.together(create)
    root = Path(world.agree(str(made[0].root.absolute()) if made is not None else ""))
    world.together(lambda: check_seen(RunFolder(root).config))
    if made is not None:
        return made
    here = Path.cwd()
    return RunFolder(root.relative_to(here) if root.is_relative_to(here) else root), SinkSet([])


def check_seen(path: Path) -> None:
    """Raise RunError where what the main process has made is not to be seen here."""
    if not path.exists():
        raise RunError(f"{path} is not seen here. All processes need the run folder: put it where they share a disk.")
