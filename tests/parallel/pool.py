"""Processes that stay: starting one takes seconds, so that all tests share a few, which have met once."""

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
import torch.distributed as dist

from colakit.parallel import world as world_module
from colakit.parallel.environment import Place
from colakit.parallel.world import ALONE, World, group_of, join

P = ParamSpec("P")
T = TypeVar("T")

SIZE = 4
_PRELOADED = [
    *("colakit.cli.app", "colakit.train.trainer", "colakit.train.shared_saver"),
    *("torch.distributed.fsdp", "torch._dynamo", "torch.utils.tensorboard", "datasets", "pytest", "hypothesis"),
]
_TIMEOUT_S = 60.0
_OTHERS_S = 1.0
"""How long after one has failed the others may take to fail too: what they say may be the reason."""


class _Member(NamedTuple):
    process: BaseProcess
    line: Connection


class Pool:
    """`SIZE` processes, of which the first few do what they are asked. They end with the process that made them."""

    def __init__(self) -> None:
        self._members: list[_Member] = []

    def run(self, size: int, work: Callable[Concatenate[World, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """What `work`, a function of some module, returns in each of `size` processes that share a world, by rank.

        Raises AssertionError, with every traceback, where one fails, or has no answer after a minute. All are started
        anew then, since those that waited for it may wait on.
        """
        self._members = self._members or _start()
        lines = [member.line for member in self._members[:size]]
        for line in lines:
            line.send_bytes(pickle.dumps((size, work, args, kwargs)))
        answers: dict[object, tuple[Any, str]] = {}
        ends = time.monotonic() + _TIMEOUT_S
        while len(answers) < size and (left := ends - time.monotonic()) > 0.0:
            for line in wait([line for line in lines if line not in answers], left):
                assert isinstance(line, Connection)
                answers[line] = _received(line)
                if answers[line][1]:
                    ends = min(ends, time.monotonic() + _OTHERS_S)
        told = [answers.get(line, (None, "no answer")) for line in lines]
        if any(problem for _, problem in told):
            self.close()
            raise AssertionError("\n".join(f"process {rank}: {problem}" for rank, (_, problem) in enumerate(told)))
        return [answer for answer, _ in told]

    def close(self) -> None:
        """End the processes."""
        for process, line in self._members:
            process.kill()
            process.join()
            line.close()
        self._members = []


def group_of_all(timeout_s: float) -> World:
    """Another one of the pool's processes, which may be left broken; its roll calls do not last as long."""
    world_module._ROLL_CALL_S = 0.8
    return group_of(range(SIZE), timeout_s=timeout_s)


def _received(line: Connection) -> tuple[Any, str]:
    try:
        answer: tuple[Any, str] = pickle.loads(line.recv_bytes())
    except EOFError:
        return None, "it has ended"
    return answer


def forking() -> ForkServerContext:
    """By which processes are started that share what takes long to import: a tenth of a second for each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _start() -> list[_Member]:
    context, port = forking(), free_port()
    members = []
    for rank in range(SIZE):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(rank, port, theirs), daemon=True)
        process.start()
        theirs.close()  # else nobody would see the other end close
        members.append(_Member(process, ours))
    return members


def _serve(rank: int, port: int, line: Connection) -> None:
    """Answer until nobody asks any more."""
    faulthandler.enable()  # so that a process that a library ends says where
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    join(Place(rank, rank, SIZE, SIZE))
    worlds = {1: ALONE, **{size: _world(range(size), rank) for size in range(2, SIZE + 1)}}
    with contextlib.suppress(EOFError, OSError):
        while True:
            line.send_bytes(pickle.dumps(_answer(line.recv_bytes(), worlds)))
    os._exit(0)  # without Python's own end, which gloo's threads may disturb


def _world(ranks: range, rank: int) -> World | None:
    if rank in ranks:
        return group_of(ranks, timeout_s=_TIMEOUT_S)
    for backend in (None, "gloo"):  # as `group_of`: groups are made by all processes, in one order
        dist.new_group(list(ranks), backend=backend)
    return None


def _answer(question: bytes, worlds: dict[int, World | None]) -> tuple[object, str]:
    try:
        size, work, args, kwargs = pickle.loads(question)
        return work(worlds[size], *args, **kwargs), ""
    except BaseException:  # a process that a `Told` ends has failed too
        return None, traceback.format_exc()
