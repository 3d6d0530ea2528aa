"""A contestant's process, and this process's end of the line to it.

A process each, so that peak memory is its own and running out of it ends nothing else. They wait while others take
their turn.
"""

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from typing import TypeVar

from colakit.bench.contestant import Contestant
from colakit.bench.course import Course, Figures, NotCompiledError
from colakit.build import Machine
from colakit.errors import RunError
from colakit.train.step import is_out_of_memory

OUT_OF_MEMORY = "out of memory"
KILLED = "the measuring process was killed, most likely for want of memory"
NOT_COMPILED = "torch.compile fails here: `colakit doctor` says what is missing"
_JOIN_S = 10.0
_END_S = 3.0
T = TypeVar("T")


class Lost(Exception):
    """The contestant cannot go on: why."""


class Worker:
    """A contestant that takes turns. Every method raises Lost, and TimeoutError where an answer takes too long."""

    def __init__(self, connection: Connection, process: multiprocessing.process.BaseProcess) -> None:
        self._connection, self._process = connection, process

    def warm_up(self, timeout_s: float) -> float:
        """Seconds of a step, when it is ready."""
        return self._ask("warm up", timeout_s, float)

    def turn(self, n_steps: int, timeout_s: float) -> float:
        """Seconds of so many steps."""
        return self._ask(n_steps, timeout_s, float)

    def figures(self, timeout_s: float) -> Figures:
        """Of all its turns; there are no more."""
        return self._ask("end", timeout_s, Figures)

    def _ask(self, request: object, timeout_s: float, kind: type[T]) -> T:
        try:
            self._connection.send(request)
            if not self._connection.poll(timeout_s):
                raise TimeoutError
            answer = self._connection.recv()
        except (EOFError, ConnectionError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            self._process.join(_JOIN_S)
            if self._process.exitcode == 1:  # a fault of ours
                raise RunError("A measuring process failed; what it said is above.") from error
            raise Lost(KILLED) from error
        if isinstance(answer, str):
            raise Lost(answer)
        assert isinstance(answer, kind)
        return answer


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
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, contestant, machine, gives_back), daemon=True)
    start(process)
    theirs.close()
    try:
        yield Worker(ours, process)
        ours.close()
        process.join(_END_S)  # by itself, so that the compiler's own processes end with it
    finally:
        ours.close()
        process.kill()
        process.join()


def serve(connection: Connection, contestant: Contestant, machine: Machine, gives_back: bool) -> None:
    """Answer requests until the last one; a lack of memory is an answer too, and so is that of a compiler."""
    try:
        with closing(Course(contestant, machine, gives_back=gives_back)) as course:
            while (request := connection.recv()) != "end":
                connection.send(course.warm_up() if request == "warm up" else course.turn(request))
            connection.send(course.figures())
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one of these
        if not is_out_of_memory(error):
            raise
        connection.send(OUT_OF_MEMORY)
    except NotCompiledError:
        connection.send(NOT_COMPILED)
    except EOFError:
        pass  # nobody asks any more
