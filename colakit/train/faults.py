"""What a run says where memory or disk runs out, and how to go on with it."""

import errno

from colakit.checkpoint.folders import Checkpoints, step_of
from colakit.config.schema import RunConfig
from colakit.train.memory import out_of_memory_advice
from colakit.train.runs import RunFolder
from colakit.train.step import is_out_of_memory

_FULL = (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_expected(error: BaseException) -> bool:
    """Whether memory or disk ran out, rather than that something is wrong in the code."""
    return isinstance(error, OSError) or is_out_of_memory(error)


def describe_fault(error: BaseException, folder: RunFolder, config: RunConfig, step: int) -> str:
    """What ran out in the making of `step`, and what to do about it."""
    if isinstance(error, OSError):
        advice = "Free some space there." if error.errno in _FULL else "Mend that first."
        return f"{folder.root} cannot be written: {error.strerror or error}. {advice}"
    return f"Out of memory at step {step}, {out_of_memory_advice(config)}"


def how_to_go_on(folder: RunFolder) -> str:
    """The command that goes on from the newest checkpoint."""
    newest = Checkpoints(folder.checkpoints).newest()
    if newest is None:
        return "There is no checkpoint."
    return f"`colakit train --resume {folder.root}` goes on after step {step_of(newest)}."
