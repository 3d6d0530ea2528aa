"""What a run says where memory or disk runs out, and how to go on with it."""

from colakit.build import on_machine, pick_machine
from colakit.checkpoint.folders import Checkpoints, step_of
from colakit.config.schema import RunConfig
from colakit.errors import disk_fault
from colakit.train.memory import out_of_memory_advice
from colakit.train.runs import RunFolder, resume_command
from colakit.train.step import is_out_of_memory


def is_expected(error: BaseException) -> bool:
    """Whether memory or disk ran out, rather than that something is wrong in the code."""
    return isinstance(error, OSError) or is_out_of_memory(error)


def describe_fault(
    error: BaseException, folder: RunFolder, config: RunConfig, step: int, held: int, nproc: int = 1
) -> str:
    """What ran out in the making of `step`, and what to do about it; the rest as for `out_of_memory_advice`."""
    if isinstance(error, OSError):
        return disk_fault(folder.root, error)
    advice = out_of_memory_advice(on_machine(config, pick_machine(config)), held, nproc)
    return f"Out of memory at step {step}, {advice}"


def how_to_go_on(folder: RunFolder, nproc: int = 1, machines: int = 1) -> str:
    """The command that goes on from the newest checkpoint, in as many processes."""
    newest = Checkpoints(folder.checkpoints).newest()
    if newest is None:
        return f"There is no checkpoint to go on from: remove {folder.root}, and start again."
    return f"`{resume_command(folder.root, nproc, machines)}` goes on after step {step_of(newest)}."
