"""A contestant's process, and this process's end of the line to it.

A process each, or several that share its batch, so that peak memory is its own and running out of it ends nothing else.
They wait while others take their turn.
"""

import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeVar

import torch

from colakit.bench.contestant import Contestant
from colakit.bench.course import Course, Figures, NotCompiledError
from colakit.build import Machine
from colakit.errors import RunError
from colakit.parallel.environment import Place
from colakit.parallel.world import ALONE, World, group_of, is_lost, join
from colakit.train.step import is_out_of_memory

OUT_OF_MEMORY = "out of memory"
KILLED = "the measuring process was killed, most likely for want of memory"
NOT_COMPILED = "torch.compile fails here: `colakit doctor` says what is missing"
DESERTED = "another of its processes ended"
_JOIN_S = 10.0
_END_S = 3.0
T = TypeVar("T")


class Lost(Exception):
    """The contestant cannot go on: why."""


class _Member(NamedTuple):
    """One of a contestant's processes, and the line to it."""

    connection: Connection
    process: multiprocessing.process.BaseProcess


class Worker:
    """A contestant that takes turns. Every method raises Lost, and TimeoutError where an answer takes too long."""

    def __init__(self, members: Sequence[_Member]) -> None:
        self._members = members

    def warm_up(self, timeout_s: float) -> float:
        """Seconds of a step, when it is ready."""
        return max(self._ask("warm up", timeout_s, float))

    def turn(self, n_steps: int, timeout_s: float) -> float:
        """Seconds of so many steps."""
        return max(self._ask(n_steps, timeout_s, float))

    def figures(self, timeout_s: float) -> Figures:
        """Of all its turns; there are no more. Of several processes the first one's, with what is true of all."""
        return together(self._ask("end", timeout_s, Figures))

    def _ask(self, request: object, timeout_s: float, kind: type[T]) -> list[T]:
        """Every process's answer."""
        ends = time.monotonic() + timeout_s
        try:
            for member in self._members:
                member.connection.send(request)
            answers = [self._answer(member, ends - time.monotonic()) for member in self._members]
        except (EOFError, ConnectionError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            for member in self._members:
                member.process.join(_JOIN_S)
            if any(member.process.exitcode == 1 for member in self._members):  # a fault of ours
                raise RunError("A measuring process failed; what it said is above.") from error
            raise Lost(KILLED) from error
        if told := [answer for answer in answers if isinstance(answer, str)]:
            raise Lost(next((answer for answer in told if answer != DESERTED), DESERTED))
        assert all(isinstance(answer, kind) for answer in answers)
        return answers

    @staticmethod
    def _answer(member: _Member, timeout_s: float) -> Any:  # Any: what it was asked for, or why there is none
        if not member.connection.poll(max(0.0, timeout_s)):
            raise TimeoutError
        return member.connection.recv()


def together(figures: Sequence[Figures]) -> Figures:
    """One contestant's, of those of its processes: bytes sent are the mean, memory is the most that one holds."""
    first = figures[0]
    if len(figures) == 1:
        return first
    kinds = sorted({kind for each in figures for kind in each.sent or {}})
    sent = {kind: round(sum((each.sent or {}).get(kind, 0) for each in figures) / len(figures)) for kind in kinds}
    memory = max((each.memory for each in figures), key=lambda m: m.optimizer + (m.peak or 0.0))
    return replace(first, sent=sent, memory=replace(memory, optimizer=max(f.memory.optimizer for f in figures)))


def start(process: multiprocessing.process.BaseProcess) -> None:
    """So that Ctrl-C is this process's alone to answer: it ends the other one."""
    if threading.current_thread() is not threading.main_thread():  # no other may say who answers
        process.start()
        return
    answer = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, answer)


@contextmanager
def started(contestant: Contestant, machine: Machine, *, gives_back: bool) -> Iterator[Worker]:
    """A worker, which lives no longer than the block; `gives_back` as for `Course`."""
    context = multiprocessing.get_context("spawn")
    members = []
    with tempfile.TemporaryDirectory(prefix="colakit-bench-") as folder, ExitStack() as ends:
        for rank in range(contestant.nproc):
            ours, theirs = context.Pipe()
            seat = Seat(rank, f"file://{folder}/meeting")
            process = context.Process(target=serve, args=(theirs, contestant, machine, gives_back, seat), daemon=True)
            with _quiet_profiler():
                start(process)
            theirs.close()
            members.append(_Member(ours, process))
            ends.callback(process.join)
            ends.callback(process.kill)
            ends.callback(ours.close)
        yield Worker(members)
        for member in members:
            member.connection.close()
        for member in members:
            member.process.join(_END_S)  # by itself, so that the compiler's own processes end with it


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """For processes started inside: torch's profiler prints when it begins, unless told before it is loaded."""
    name, before = "KINETO_LOG_LEVEL", os.environ.get("KINETO_LOG_LEVEL")
    os.environ[name] = before or "99"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


@dataclass(frozen=True)
class Seat:
    """Which of a contestant's processes this is, and where they meet."""

    rank: int
    meeting_point: str


def serve(connection: Connection, contestant: Contestant, machine: Machine, gives_back: bool, seat: Seat) -> None:
    """Answer requests until the last one; a lack of memory is an answer too, and so is that of a compiler."""
    if contestant.threads is not None:
        torch.set_num_threads(contestant.threads)
    world, machine = _met(contestant, machine, seat)
    try:
        with closing(Course(contestant, machine, gives_back=gives_back, world=world)) as course:
            while (request := connection.recv()) != "end":
                connection.send(course.warm_up() if request == "warm up" else course.turn(request))
            connection.send(course.figures())
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one of these
        if is_out_of_memory(error):
            connection.send(OUT_OF_MEMORY)
        elif isinstance(error, RuntimeError) and world.size > 1 and is_lost(error):
            connection.send(DESERTED)
        else:
            raise
    except NotCompiledError:
        connection.send(NOT_COMPILED)
    except (EOFError, ConnectionError):
        pass  # nobody asks any more, or hears
    if world.size > 1:
        os._exit(0)  # threads of gloo, which hold objects of Python's, may outlive its end


def _met(contestant: Contestant, machine: Machine, seat: Seat) -> tuple[World, Machine]:
    """The contestant's other processes, and what this one computes on."""
    n = contestant.nproc
    if n == 1:
        return ALONE, machine
    if machine.device.type == "cuda":
        torch.cuda.set_device(seat.rank)
        machine = replace(machine, device=torch.device("cuda", seat.rank))
    join(Place(seat.rank, seat.rank, n, n), seat.meeting_point)
    return group_of(range(n), timeout_s=contestant.config.parallel.timeout_s), machine
