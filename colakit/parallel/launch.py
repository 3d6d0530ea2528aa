"""``--nproc``: start so many processes of a command on this machine, by torch's own launcher, and wait for them."""

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import psutil
import torch
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from colakit.errors import ConfigError, Problem

log = logging.getLogger(__name__)

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def check_gpus(n: int, device: str) -> None:
    """Raise ConfigError where `n` processes are more than there are GPUs, of which each gets one."""
    n_gpus = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else n
    if n > n_gpus:
        rule = f"there {'is 1 GPU' if n_gpus == 1 else f'are {n_gpus} GPUs'} on this machine, and each has one process"
        fix = "Start fewer processes, or --set train.device=cpu."
        raise ConfigError([Problem("--nproc", n, rule, fix)])


def launch(n: int, arguments: Sequence[str], *, threads: int) -> int:
    """Run ``colakit ARGUMENTS`` in `n` processes of so many `threads`; → the exit code of the first that failed.

    Of fewer where OMP_NUM_THREADS says so. Of more, they would wait for each other.

    Where one fails the others are ended. Signals are passed on to them, and they end as one process alone would.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what failed is told below
    os.environ["OMP_NUM_THREADS"] = str(min(threads, _wanted_threads() or threads))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else each tells of every connection that it loses
    with tempfile.TemporaryDirectory(prefix="colakit-nproc-") as folder, _passing_signals_on():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=n,
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",  # else the machine's name is looked up, which may have no address
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),  # which would stay behind elsewhere
            # None of those that are passed on: torch's handlers end the job, whatever it has begun to save.
            signals_to_handle="SIGQUIT",
        )
        try:
            # -P: as the command itself, without a look for modules in the folder it is called from.
            elastic_launch(config, sys.executable)("-P", "-m", "colakit", *arguments)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            return _told(rank, failure)
    return 0


def _wanted_threads() -> int:
    """What the user has set for each process; 0 where that is nothing, or no number."""
    with suppress(ValueError):
        return max(0, int(os.environ.get("OMP_NUM_THREADS", "")))
    return 0


@contextmanager
def _passing_signals_on() -> Iterator[None]:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                child.send_signal(number)

    before = {s: signal.signal(s, pass_on) for s in _PASSED_ON if signal.getsignal(s) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _told(rank: int, failure: ProcessFailure) -> int:
    """Say of a process what it could not say itself; → the exit code that stands for it."""
    if failure.exitcode < 0:
        is_killed = failure.exitcode == -signal.SIGKILL
        why = ": killed by somebody, or for want of memory" if is_killed else ""
        log.error("Process %d was ended by %s%s.", rank, failure.signal_name(), why)
        return 128 - failure.exitcode
    if failure.exitcode not in (2, 130):  # the user's mistakes and interruptions are told of, and all of them
        log.error("Process %d failed with exit code %d; what it said is above.", rank, failure.exitcode)
    return failure.exitcode
