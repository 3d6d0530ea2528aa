"""The command line in several processes, as torchrun starts them, without the seconds that each takes to import."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import torch.distributed as dist

from colakit.cli.app import main
from tests.parallel.pool import forking, free_port

_TIMEOUT_S = 60.0


class Job:
    """``colakit ARGUMENTS`` in `size` processes that share it; one alone is no job of a launcher's."""

    def __init__(self, size: int, *arguments: str, cwd: Path, by_hand: bool = False) -> None:
        """`by_hand`: with the variables that a launcher sets, but without the launcher, and its store."""
        self._folder = cwd / f"output-{time.monotonic_ns()}"
        self._folder.mkdir()
        self._by_hand = by_hand
        self._port = free_port()
        # The launcher's, so that whoever ends takes it from nobody.
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.processes = [
            forking().Process(
                target=_run,
                args=(arguments, cwd, self._folder, rank, dict(os.environ), self._launched(rank, size)),
                daemon=True,
            )
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def _launched(self, rank: int, size: int) -> dict[str, str]:
        if size == 1:
            return {}
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        launchers = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        return {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._port if self._by_hand else self._store.port),
            **({} if self._by_hand else launchers),
            **{name: str(number) for name, number in numbers.items()},
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def wait(self) -> list[int | None]:
        """The exit codes, by rank; a signal's are negative, and None is of one that has not ended after a minute."""
        ends = time.monotonic() + _TIMEOUT_S
        for process in self.processes:
            process.join(max(0.0, ends - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def send(self, rank: int, number: signal.Signals) -> None:
        """Send a process a signal, if it is there yet."""
        pid = self.processes[rank].pid
        assert pid is not None
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def out(self, rank: int) -> str:
        """What a process has printed."""
        return (self._folder / f"out-{rank}").read_text("utf-8")

    def err(self, rank: int) -> str:
        """What a process has told beside."""
        return (self._folder / f"err-{rank}").read_text("utf-8")


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for it; AssertionError where it does not come to be in a minute."""
    ends = time.monotonic() + _TIMEOUT_S
    while not condition():
        assert time.monotonic() < ends, f"waited in vain for {what}"
        time.sleep(0.005)


def _run(
    arguments: tuple[str, ...],
    cwd: Path,
    output: Path,
    rank: int,
    environment: Mapping[str, str],
    launched: Mapping[str, str],
) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(output / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update({**environment, **launched, "COLUMNS": "200"})
    main(list(arguments))
