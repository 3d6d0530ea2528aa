"""What a device reaches at best: the fastest of many matrix products, and of many copies."""

import time
from collections.abc import Callable

import torch

from colakit import products
from colakit.build import Machine
from colakit.records.machine import PeakRecord

_SECONDS = 0.5
"""For each of the two, after a warm-up."""
_SIDE = {"cpu": 2048, "cuda": 8192}
_COPIED_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Beyond any cache."""


def measure_peaks(machine: Machine) -> PeakRecord:
    """The best of half a second of square products in the machine's dtype, and of copies."""
    device, dtype = machine.device, machine.dtype
    return PeakRecord(
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        matmul_flops_per_s=matmul_flops_per_s(device, dtype),
        bytes_per_s=_copied_bytes_per_s(device),
    )


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Of a product of two matrices of `side` rows and columns, 2·side³ operations; unset: large enough for the peak."""
    if device.type == "cpu":
        products.use_fastest()  # as training does
    side = side or _SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / _best(lambda: torch.mm(a, b, out=out), device)


def _copied_bytes_per_s(device: torch.device) -> float:
    source = torch.ones(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several calls."""
    times: list[float] = []
    work()
    started = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - started < _SECONDS:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return min(times)
