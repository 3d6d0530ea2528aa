"""When memory runs out: ``train.memory_gib``, where an allocation fails and not the machine; what to do then."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from colakit.analysis.memory import memory_ledger
from colakit.config.schema import RunConfig
from colakit.errors import ConfigError, Problem
from colakit.units import GIB, gib


def check_budget(limit_gib: float | None) -> None:
    """Raise ConfigError where the system has no such limit, or this process is past it already."""
    if limit_gib is None:
        return
    if not sys.platform.startswith("linux"):
        rule = "only Linux limits the memory of a process"
        raise ConfigError([Problem("train.memory_gib", limit_gib, rule, "Leave it out.")])
    held = held_bytes()
    if limit_gib * GIB <= held:
        rule = f"this process holds {gib(held):.2f} GiB before its first step"
        raise ConfigError([Problem("train.memory_gib", limit_gib, rule, "Raise it above that, by what a step takes.")])


@contextmanager
def memory_budget(limit_gib: float | None) -> Iterator[None]:
    """Inside, this process may allocate what it does not hold yet of `limit_gib`; None: no budget.

    What libraries have reserved before and never touched does not count. What is refused raises MemoryError, or torch's
    RuntimeError.
    """
    if limit_gib is None:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = max(0, int(limit_gib * GIB) - held_bytes()) + _reserved_bytes()
    others = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([wanted, *others]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def held_bytes() -> int:
    """What of this process is in memory."""
    return psutil.Process().memory_info().rss


def _reserved_bytes() -> int:
    """What the system's limit counts: all that may be written to, touched or not. Linux."""
    status = Path("/proc/self/status").read_text("ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmData:")))


def out_of_memory_advice(config: RunConfig, held: int, nproc: int = 1) -> str:
    """What a step takes by the ledger, and the next smaller micro-batch of the same batch; ends a sentence begun.

    `held` are the bytes that the process held before its first step: where a budget leaves no room for any batch
    beside them, how much would. `nproc` processes share the batch.
    """
    own, micro = config.train.batch_size // nproc, config.train.micro_batch_size_of(nproc)
    ledger = memory_ledger(with_micro_batch(config, micro))
    state = ledger.muon_state + ledger.adamw_state
    fixed = ledger.weights + ledger.gradients + state
    divided = {"ddp": 0, "zero1": state, "fsdp2": fixed}[config.parallel.strategy]
    elsewhere = divided - divided // nproc
    takes = (
        f"in a micro-batch of {micro} sequences. By the ledger it takes {gib(ledger.total - elsewhere):.2f} GiB, "
        f"{gib(fixed - elsewhere):.2f} GiB of them for weights, gradients and optimizer"
    )
    gathered = ", and what is gathered of others besides" if config.parallel.strategy == "fsdp2" else ""
    takes += f": the share of one of {nproc} processes{gathered}." if elsewhere else "."
    if (budget := config.train.memory_gib) is not None:
        least = held + memory_ledger(with_micro_batch(config, 1)).total - elsewhere - ledger.weights
        takes += f" train.memory_gib allows the whole process {budget:g} GiB; {gib(held):.2f} were held before a step."
        if gib(least) > budget:
            return (
                f"{takes} That is too little for a single sequence: set {math.ceil(10 * gib(least)) / 10:g} at least."
            )
    if micro == 1:
        return f"{takes} Try a smaller model, or shorter sequences."
    smaller = max(n for n in range(1, micro) if own % n == 0)
    total = memory_ledger(with_micro_batch(config, smaller)).total - elsewhere
    return f"{takes} Try --set train.micro_batch_size={smaller}: {gib(total):.2f} GiB at the same batch size."


def with_micro_batch(config: RunConfig, size: int) -> RunConfig:
    """`config` in micro-batches of so many sequences."""
    return config.model_copy(update={"train": config.train.model_copy(update={"micro_batch_size": size})})
