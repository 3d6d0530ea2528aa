"""One batch size tried in a process of its own: steps as training makes them, under a limit of memory.

On CUDA the allocator refuses what is beyond the limit. On a CPU the process is watched, and killed where it holds more.
"""

import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import psutil
import torch

from colakit.bench.peaks import matmul_flops_per_s
from colakit.bench.peers import OwnStep
from colakit.bench.random_data import random_batches
from colakit.bench.worker import OUT_OF_MEMORY, start
from colakit.build import Machine
from colakit.config.schema import RunConfig
from colakit.errors import ColakitError, RunError
from colakit.evaluate.scores import LMScorer
from colakit.host import free_memory, peak_resident_memory
from colakit.train.step import is_out_of_memory
from colakit.units import gib

_LOOK_S = 0.02
_JOIN_S = 10.0
KEPT_FREE = 64 * 2**20
"""Bytes of the machine's memory, below which it may begin to swap."""
_KILLED = (-9, -6)
"""Exit codes where memory ran out: killed by the system, or aborted by an allocator."""


@dataclass(frozen=True)
class Outcome:
    """What came of a try. On CUDA, memory is what the allocator took; on a CPU, what the process held."""

    fits: bool
    peak: int | None
    """Bytes; None where that cannot be known."""
    seconds: float
    """Of the whole try."""
    step_s: float | None = None
    """Of the last step."""
    reason: str | None = None
    compiled: bool = False
    """Whether its blocks were."""


@dataclass(frozen=True)
class Room:
    """What a process finds before it builds a model, and what the machine reaches."""

    taken: int
    """Bytes that it holds: on a CPU what is resident; 0 on CUDA, where `free` is what the context has left."""
    free: int
    """Bytes that it may have, what is `taken` included."""
    peak_flops_per_s: float


_TINY = {"d_model": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "d_ff": 32, "vocab_size": 64, "seq_len": 16}


def find_room(config: RunConfig, machine: Machine) -> Room:
    """Seen from processes of their own, which leave nothing behind. Raises RunError where one is killed."""
    tiny = _shrunk(config)
    room = _room(tiny, machine)
    if machine.compiles and machine.device.type == "cpu":  # so is the compiler, which has processes of its own
        compiled = try_batch(tiny, machine, steps=2, limit=room.free, timeout_s=math.inf)
        room = replace(room, taken=max(room.taken, compiled.peak or 0))
    return room


def _shrunk(config: RunConfig) -> RunConfig:
    """What its first steps load and keep is there whatever the batch."""
    return with_micro_batch(
        config.model_copy(update={"model": config.model.model_copy(update={**_TINY, "rank": None})}), 1
    )


def _room(tiny: RunConfig, machine: Machine) -> Room:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_find_room, tiny, machine).result()
        except BrokenProcessPool as error:
            raise RunError("A measuring process was killed, most likely for want of memory.") from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunError("There is not even memory for a tiny model. Close what holds it.") from error


def _find_room(tiny: RunConfig, machine: Machine) -> Room:
    _make_steps(tiny, replace(machine, compiles=False), steps=2)
    if machine.device.type == "cuda":
        torch.cuda.empty_cache()
        taken, free = 0, torch.cuda.mem_get_info(machine.device)[0]
    else:
        taken = psutil.Process().memory_info().rss
        free = free_memory() + taken
    return Room(taken, free, matmul_flops_per_s(machine.device, machine.dtype))


def with_micro_batch(config: RunConfig, size: int) -> RunConfig:
    """`config` in micro-batches of `size`, with as few of them as show what a step of several holds.

    That is one where the batch is no larger, else two: while the second is computed, the gradients of the first wait.
    """
    n_micro = 1 if size >= config.train.batch_size else 2
    sizes = {"batch_size": n_micro * size, "micro_batch_size": size}
    return config.model_copy(update={"train": config.train.model_copy(update=sizes)})


def try_batch(config: RunConfig, machine: Machine, *, steps: int, limit: int, timeout_s: float) -> Outcome:
    """Make `steps` steps of `config`, an evaluation between them, in `limit` bytes.

    Raises TimeoutError, and RunError where the process fails for another reason than memory, or others took so much
    of it meanwhile that the machine would swap.
    """
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, config, machine, steps, limit), daemon=True)
    start(process)
    theirs.close()
    watch = _Watch(process.pid, with_children=machine.compiles)
    try:
        while not ours.poll(_LOOK_S):
            if machine.device.type == "cpu":
                if watch.look() > limit:
                    return Outcome(False, None, time.monotonic() - began, reason=_held_more(limit))
                if free_memory() < KEPT_FREE:
                    raise RunError("Other processes took the memory meanwhile. Close them, or lower --memory-gib.")
            if time.monotonic() - began > timeout_s:
                raise TimeoutError
        outcome: Outcome | str = ours.recv()
    except EOFError:
        process.join(_JOIN_S)
        if process.exitcode not in _KILLED:
            raise RunError(f"A measuring process failed ({process.exitcode}); what it said is above.") from None
        reason = "its process was killed, most likely for want of memory"
        return Outcome(False, None, time.monotonic() - began, reason=reason)
    finally:
        ours.close()
        process.kill()
        process.join()
    if isinstance(outcome, str):
        raise RunError(outcome)
    peak = max(outcome.peak or 0, watch.peak) if machine.device.type == "cpu" else outcome.peak
    outcome = replace(outcome, peak=peak, seconds=time.monotonic() - began)
    if outcome.fits and peak is not None and peak > limit:  # it may pass between two looks
        return replace(outcome, fits=False, reason=_held_more(limit))
    return outcome


def _held_more(limit: int) -> str:
    return f"held more than {gib(limit):.2f} GiB"


class _Watch:
    """The most memory that a process was seen to hold."""

    def __init__(self, pid: int | None, *, with_children: bool) -> None:
        """`with_children`: together with its own, such as the compiler."""
        assert pid is not None
        self._pid, self._with_children = pid, with_children
        self.peak = 0

    def look(self) -> int:
        """Bytes that are resident now."""
        held = 0
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._pid)
            for each in (process, *(process.children(recursive=True) if self._with_children else ())):
                with suppress(psutil.NoSuchProcess):  # that one has ended meanwhile
                    held += each.memory_info().rss
        self.peak = max(self.peak, held)
        return held


def _serve(connection: Connection, config: RunConfig, machine: Machine, steps: int, limit: int) -> None:
    try:
        if machine.device.type == "cuda":
            total = torch.cuda.mem_get_info(machine.device)[1]
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
        connection.send(_make_steps(config, machine, steps))
    except ColakitError as error:
        connection.send(str(error))
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one of these
        if not is_out_of_memory(error):
            raise
        connection.send(Outcome(False, None, 0.0, reason=OUT_OF_MEMORY))


def _make_steps(config: RunConfig, machine: Machine, steps: int) -> Outcome:
    device = machine.device
    on_cuda = device.type == "cuda"
    if not on_cuda:
        import datasets  # noqa: F401  (training reads its data with it, and holds it beside the steps)
    step = OwnStep(config, machine)
    with closing(random_batches(config)) as batches:
        for n in range(steps):
            began = time.perf_counter()
            micro_batches = next(batches)
            if not step(n, micro_batches):
                raise RunError("A step made no update: loss or gradient not finite. Lower optim.lr.")
            if on_cuda:
                torch.cuda.synchronize(device)
            step_s = time.perf_counter() - began
            if n == 0:
                LMScorer(step.model, machine)(micro_batches[0]).nll.cpu()
    peak = torch.cuda.max_memory_reserved(device) if on_cuda else peak_resident_memory()
    return Outcome(True, peak, 0.0, step_s, compiled=step.is_compiled)
