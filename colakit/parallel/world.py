"""The processes that share a run: who this one is among them, and what they tell each other besides gradients.

Small things (counts, flags, what went wrong) go over the CPU, so that a GPU is never waited for.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from colakit.errors import ColakitError, ConfigError, Problem, RunError
from colakit.parallel.environment import Place

log = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK_S = 0.05
_ROLL_CALL_S = 2.0
"""How long after one has lost the others those that have too are waited for. By a timeout all find out at nearly one
time; where one has ended, gloo tells only those that are next to it."""


class Told(SystemExit):
    """Ends a process whose error another one shows: exit code 2."""

    def __init__(self) -> None:
        super().__init__(2)


class _Seat(NamedTuple):
    """Where a process runs, as all others know it."""

    machine: str
    number: int
    started: float

    @classmethod
    def own(cls) -> "_Seat":
        process = psutil.Process()
        return cls(socket.gethostname(), process.pid, process.create_time())

    def is_running(self) -> bool | None:
        """None of a process on another machine."""
        if self.machine != socket.gethostname():
            return None
        try:
            process = psutil.Process(self.number)
            return process.create_time() == self.started and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


class World:
    """Base and simplest case: one process, alone."""

    rank = 0
    size = 1
    group: "dist.ProcessGroup | None" = None
    """Moves tensors of the training device."""
    control: "dist.ProcessGroup | None" = None
    """Moves what lies on the host."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and speaks for all."""
        return self.rank == 0

    def totals(self, *counts: int) -> tuple[int, ...]:
        """The sums of `counts` over all processes."""
        return counts

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        return self.totals(int(flag))[0] > 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """`tensor`, on the training device or the host, with the sum over all processes in its place."""
        return tensor

    def gather(self, value: T) -> list[T]:
        """Every process's `value`, by rank."""
        return [value]

    def agree(self, value: T) -> T:
        """The main process's `value`."""
        return value

    def told(self, error: ColakitError) -> BaseException:
        """What to raise for an error that others meet at the same time: the first one of those tells of it."""
        return error

    def together(self, work: Callable[[], T]) -> T:
        """What `work` returns here, once it has succeeded everywhere.

        Where it raises a ColakitError anywhere, the main process raises the first one's, and the others end in silence.
        """
        return work()

    def main_first(self, work: Callable[[], T]) -> T:
        """As `together`, but all others begin when the main process is done, however long that takes."""
        return work()

    @contextmanager
    def watched(self, where: Callable[[], str]) -> Iterator[None]:
        """Inside, whoever loses the others says who is missing. `where` tells how far the run is and how to go on."""
        yield


ALONE = World()


class Group(World):
    """Several processes."""

    def __init__(
        self, rank: int, size: int, *, group: "dist.ProcessGroup", control: "dist.ProcessGroup", timeout_s: float
    ) -> None:
        from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

        self.rank, self.size, self.group, self.control = rank, size, group, control
        self._timeout_s = timeout_s
        self._turns = 0
        # A name that all of them know the group by, and no other group has.
        self._store = PrefixStore(f"colakit/{control.group_name}", _get_default_store())
        self._seats = self.gather(_Seat.own())

    def totals(self, *counts: int) -> tuple[int, ...]:
        tensor = torch.tensor(counts, dtype=torch.int64)
        dist.all_reduce(tensor, group=self.control)
        return tuple(tensor.tolist())

    def sum_(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor, group=self.control if tensor.device.type == "cpu" else self.group)
        return tensor

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def agree(self, value: T) -> T:
        return self.gather(value if self.is_main else None)[0]  # type: ignore[return-value]  # the main one's is no None

    def told(self, error: ColakitError) -> BaseException:
        if self.is_main:
            self._store.set("told/0", "")
            return error
        try:
            self._store.set(f"told/{self.rank}", "")
            is_told = self._look_for(lambda: any(self._store.check([f"told/{rank}"]) for rank in range(self.rank)))
        except dist.DistError:  # the main process kept the store itself, and has told of it and ended
            is_told = True
        return Told() if is_told else error

    def together(self, work: Callable[[], T]) -> T:
        result, problem = None, None
        try:
            result = work()
        except ColakitError as error:
            problem = error
        problems = self.gather(str(problem) if problem is not None else None)
        self._raise_first(problems, problem)
        return result  # type: ignore[return-value]  # there was no problem

    def main_first(self, work: Callable[[], T]) -> T:
        self._turns += 1
        done = f"turn/{self._turns}"
        if not self.is_main:
            if message := self._written(done):
                self._store.set(f"{done}/{self.rank}", "")
                self._raise_first([message], None)
            return self.together(work)
        try:
            result = work()
        except ColakitError as error:
            self._store.set(done, str(error))
            # It may be this process that keeps the store.
            self._look_for(lambda: all(self._store.check([f"{done}/{rank}"]) for rank in range(1, self.size)))
            raise
        self._store.set(done, "")
        return self.together(lambda: result)

    def _written(self, key: str) -> str:
        """What the main process writes there, however long it takes. Raises DistError where that has ended."""
        try:
            while not self._store.check([key]):
                if self._seats[0].is_running() is False:
                    break
                time.sleep(_LOOK_S)
            else:
                return self._store.get(key).decode()
        except dist.DistError:  # the main process kept the store itself, and has ended
            raise Told from None
        raise dist.DistNetworkError("process 0 has ended")

    def _look_for(self, condition: Callable[[], bool]) -> bool:
        """Whether it comes to be within the time of a roll call."""
        ends = time.monotonic() + _ROLL_CALL_S
        while not (found := condition()) and time.monotonic() < ends:
            time.sleep(_LOOK_S)
        return found

    def _raise_first(self, problems: Sequence[str | None], own: ColakitError | None) -> None:
        found = [(rank, message) for rank, message in enumerate(problems) if message is not None]
        if not found:
            return
        if not self.is_main:
            raise Told
        rank, message = found[0]
        raise own if rank == 0 and own is not None else RunError(f"Process {rank}: {message}")

    @contextmanager
    def watched(self, where: Callable[[], str]) -> Iterator[None]:
        try:
            yield
        except ColakitError:
            with suppress(dist.DistError):
                self._may_speak()  # of what is told here nobody else has to
            raise
        except RuntimeError as error:
            if not is_lost(error):
                raise
            timed_out = any(word in str(error) for word in ("imed out", "imeout"))
            try:
                waiting = self._roll_call()
                all_here = len(waiting) == self.size
                speaks = not all_here and self.rank == waiting[0] and self._may_speak()
            except dist.DistError:
                raise self._without_store(where) from error
            if all_here:  # and they do not fit together
                raise
            if not speaks:
                raise Told from error
            missing = [rank for rank in range(self.size) if rank not in waiting]
            raise RunError(self._describe(waiting, missing, timed_out=timed_out, where=where())) from error

    def _may_speak(self) -> bool:
        """Whether no other process has told yet why the job ends; the first one that asks does."""
        return self._store.add("told why", 1) == 1

    def _roll_call(self) -> list[int]:
        """The processes that have lost the others, this one among them."""
        if threading.current_thread() is threading.main_thread():
            # The launcher asks all to end when one has; this one is about to, and has something to say first.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._store.set(f"waiting/{self.rank}", "")
        self._look_for(lambda: self._store.check(["told why"]))
        return [rank for rank in range(self.size) if self._store.check([f"waiting/{rank}"])]

    def _without_store(self, where: Callable[[], str]) -> BaseException:
        """What to raise where whoever kept the store has ended: the launcher, or without one the main process."""
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return RunError(f"process 0 has ended, and no other can go on. {where()}")
        gone = f"The launcher has ended, and its processes cannot go on without. {where()}"
        return RunError(gone) if os.environ.get("LOCAL_RANK") == "0" else Told()  # one on each machine

    def _describe(self, waiting: Sequence[int], missing: Sequence[int], *, timed_out: bool, where: str) -> str:
        if timed_out:
            return (
                f"{_names(missing)} did not answer within {self._timeout_s:g} s (parallel.timeout_s); "
                f"{_names(waiting)} waited. {where}"
            )
        ended = [rank for rank in missing if not self._seats[rank].is_running()]
        who = f"{_names(ended)} ended" if ended else "the connection to the others was lost"
        return f"{who}, and no other can go on. {where}"


def check_built(strategy: str, device: str) -> None:
    """Raise ConfigError where torch was built without what several processes need, on a GPU unless `device` is cpu."""
    on_cuda = device != "cpu" and torch.cuda.is_available()
    lacking, fix = None, "Install a build of torch that has it, or train with one process."
    if not dist.is_available():
        lacking = "torch.distributed"
    elif not dist.is_gloo_available():
        lacking = "gloo"
    elif on_cuda and not dist.is_nccl_available():
        lacking, fix = "NCCL", "Install a build of torch that has it, or --set train.device=cpu."
    if lacking is not None:
        rule = f"this torch was built without {lacking}, by which several processes talk"
        raise ConfigError([Problem("parallel.strategy", strategy, rule, fix)])


def join(place: Place, meeting_point: str = "env://") -> None:
    """Meet the other processes of the job, where the launcher says, or at an address as `init_process_group` takes it.

    What this process tells them before `group_of` may take 10 minutes.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, meeting_point, rank=place.global_rank, world_size=place.world_size)


def group_of(ranks: Sequence[int], *, timeout_s: float) -> World:
    """The processes `ranks` of those that have met; every one of them calls this. `timeout_s` bounds every wait."""
    timeout = timedelta(seconds=timeout_s)
    rank = list(ranks).index(dist.get_rank())
    group, control = (dist.new_group(list(ranks), timeout=timeout, backend=b) for b in (None, "gloo"))
    return Group(rank, len(ranks), group=group, control=control, timeout_s=timeout_s)


def is_lost(error: RuntimeError) -> bool:
    """Whether the others cannot be reached any more, rather than that something is wrong in the code."""
    # Gloo has no type of its own for that: its messages name its source files, or the connection.
    texts = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, dist.DistError) or any(text in str(error) for text in texts)


def _names(ranks: Sequence[int]) -> str:
    numbers = ", ".join(map(str, ranks))
    return f"process {numbers}" if len(ranks) == 1 else f"processes {numbers}"
