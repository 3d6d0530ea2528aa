"""What NVML, the driver's own instrument, says about a GPU. Where it is missing or refuses, that is said, not raised.

NVIDIA's driver has it; under WSL and in containers some calls, or all, may be refused.
"""

import statistics
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pynvml
import torch

_INTERVAL_S = 0.05


@dataclass(frozen=True)
class GpuUse:
    """What a GPU did over a stretch of time; None where NVML does not tell it."""

    util_frac: float | None
    """Share of the time in which some kernel ran: the mean of the samples."""
    util_spread_frac: float | None
    """Their standard deviation."""
    memory_busy_frac: float | None
    """Share of the time in which its memory was read or written."""
    power_w: float | None
    gb_per_s: float | None
    """Memory traffic, where the driver has GPM metrics (Hopper and later)."""
    memory_bytes: int | None
    """Most memory in use, by all processes."""
    reason: str | None
    """Why something is missing."""


class Sampler:
    """Samples one GPU in a thread while `sampling` is entered. Without NVML nothing is sampled, and `use` says why."""

    def __init__(self, device: torch.device) -> None:
        """`device` is a CUDA device as this process sees it."""
        self._samples: defaultdict[str, list[float]] = defaultdict(list)
        self._reasons: dict[str, str] = {}
        self._handle = self._ask("NVML", _open, device)
        self._traffic = self._ask("GPM", _Traffic, self._handle) if self._handle is not None else None

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Inside, a thread takes samples."""
        if self._handle is None:
            yield
            return
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(stop,), daemon=True, name="colakit-nvml")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _run(self, stop: threading.Event) -> None:
        if self._traffic is not None:
            self._ask("GPM", self._traffic.start)
        while not stop.wait(_INTERVAL_S):
            if (rates := self._ask("utilisation", pynvml.nvmlDeviceGetUtilizationRates, self._handle)) is not None:
                self._samples["util"].append(rates.gpu / 100)
                self._samples["busy"].append(rates.memory / 100)
            if (milliwatts := self._ask("power", pynvml.nvmlDeviceGetPowerUsage, self._handle)) is not None:
                self._samples["power"].append(milliwatts / 1000)
            if (memory := self._ask("memory", pynvml.nvmlDeviceGetMemoryInfo, self._handle)) is not None:
                self._samples["memory"].append(memory.used)
        if self._traffic is not None and (rate := self._ask("GPM", self._traffic.gb_per_s)) is not None:
            self._samples["traffic"].append(rate)

    def _ask(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:  # Any: pynvml is untyped
        """None where NVML refuses, of which `use` tells."""
        try:
            return call(*arguments)
        except pynvml.NVMLError as error:
            self._reasons[what] = str(error)
            return None

    def use(self) -> GpuUse:
        """Over all that was sampled."""
        means = {name: statistics.fmean(values) for name, values in self._samples.items()}
        return GpuUse(
            util_frac=means.get("util"),
            util_spread_frac=statistics.pstdev(self._samples["util"]) if "util" in means else None,
            memory_busy_frac=means.get("busy"),
            power_w=means.get("power"),
            gb_per_s=means.get("traffic"),
            memory_bytes=int(max(self._samples["memory"])) if "memory" in means else None,
            reason="; ".join(f"{what}: {why}" for what, why in self._reasons.items()) or None,
        )


class _Traffic:
    """Memory traffic between two moments, from GPM's counters. Raises NVMLError where the driver has none."""

    def __init__(self, handle: Any) -> None:  # Any: pynvml is untyped
        self._handle = handle
        if not pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        # Two transfers a clock.
        clock_hz = 1e6 * pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM)
        self._peak_gb_per_s: float = 2 * clock_hz * pynvml.nvmlDeviceGetMemoryBusWidth(handle) / 8 / 1e9
        self._moments = [pynvml.nvmlGpmSampleAlloc() for _ in range(2)]

    def start(self) -> None:
        """Traffic counts from here on."""
        pynvml.nvmlGpmSampleGet(self._handle, self._moments[0])

    def gb_per_s(self) -> float:
        """Since `start`."""
        pynvml.nvmlGpmSampleGet(self._handle, self._moments[1])
        request = pynvml.c_nvmlGpmMetricsGet_t()
        request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        request.numMetrics = 1
        request.sample1, request.sample2 = self._moments
        request.metrics[0].metricId = pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL
        metric = pynvml.nvmlGpmMetricsGet(request).metrics[0]
        if metric.nvmlReturn != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(metric.nvmlReturn)
        return float(metric.value) / 100 * self._peak_gb_per_s


def _open(device: torch.device) -> Any:  # Any: pynvml is untyped
    """The GPU's handle, by its place on the bus: NVML's numbers know nothing of CUDA_VISIBLE_DEVICES."""
    pynvml.nvmlInit()
    gpu: Any = torch.cuda.get_device_properties(device)  # Any: torch declares none of these
    place = f"{gpu.pci_domain_id:08X}:{gpu.pci_bus_id:02X}:{gpu.pci_device_id:02X}.0"
    return pynvml.nvmlDeviceGetHandleByPciBusId(place)


@dataclass(frozen=True)
class Driver:
    """What NVML says before anything runs."""

    version: str | None
    gpus: tuple[str, ...]
    reason: str | None
    """Why NVML cannot be asked."""


def driver() -> Driver:
    """The driver's version and the GPUs it knows, whether or not torch can use them."""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return Driver(pynvml.nvmlSystemGetDriverVersion(), tuple(map(pynvml.nvmlDeviceGetName, handles)), None)
    except pynvml.NVMLError as error:
        return Driver(None, (), str(error))
