"""How long a part of a step takes, without making the device wait for it."""

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_KEPT = 1000
"""Latest steps that a median is taken over."""


class Clock:
    """Times of a named piece of work on `device`: the host's clock on a CPU, recorded events on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._host_ms: deque[float] = deque(maxlen=_KEPT)
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque(maxlen=_KEPT)

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Time what runs inside."""
        if self._on_cuda:
            start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            started = time.perf_counter()
            yield
            self._host_ms.append(1000.0 * (time.perf_counter() - started))

    def median_ms(self, last: int = _KEPT) -> float | None:
        """Of the `last` measurements; None before the first. On CUDA this waits for them to end."""
        if self._on_cuda:
            if self._events:
                self._events[-1][1].synchronize()
            times = [start.elapsed_time(end) for start, end in self._events]
        else:
            times = list(self._host_ms)
        return statistics.median(times[-last:]) if times else None
