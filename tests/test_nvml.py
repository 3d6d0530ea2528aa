"""Sampling a GPU: against a stand-in of the driver's library, which needs no GPU; see tests/gpu for the real one."""

import ctypes
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from colakit import nvml
from colakit.nvml import Sampler, driver

CUDA = torch.device("cuda:1")


@dataclass
class FakeDriver:
    """A GPU on bus 0x65 that is busy 80 % and 90 % of the time in turn; calls named in `refused` fail."""

    refused: tuple[str, ...] = ()
    has_gpm: bool = True
    asked: list[str] = field(default_factory=list)
    n_samples: int = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "FakeDriver":
        for name in [n for n in dir(pynvml) if n.startswith("nvml") and callable(getattr(pynvml, n))]:
            monkeypatch.setattr(pynvml, name, lambda *a, name=name: self.call(name, *a))
        properties = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x65, pci_device_id=0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: {CUDA: properties}[device])
        monkeypatch.setattr(nvml, "_INTERVAL_S", 0.001)
        return self

    def call(self, name: str, *arguments: Any) -> Any:
        self.asked.append(name)
        if name in self.refused:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return getattr(self, name)(*arguments)

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByPciBusId(self, place: str) -> str:
        assert place == "00000000:65:00.0"
        return "handle"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        assert handle == "handle"
        self.n_samples += 1
        return SimpleNamespace(gpu=80 + 10 * (self.n_samples % 2), memory=40)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 250_000

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(used=1000 + self.n_samples)

    def nvmlGpmQueryDeviceSupport(self, handle: str) -> Any:
        return SimpleNamespace(isSupportedDevice=int(self.has_gpm))

    def nvmlDeviceGetMaxClockInfo(self, handle: str, clock: int) -> int:
        assert clock == pynvml.NVML_CLOCK_MEM
        return 2000

    def nvmlDeviceGetMemoryBusWidth(self, handle: str) -> int:
        return 5120

    def nvmlGpmSampleAlloc(self) -> Any:
        return pynvml.c_nvmlGpmSample_t(ctypes.pointer(pynvml.struct_c_nvmlGpmSample_t()))

    def nvmlGpmSampleGet(self, handle: str, sample: Any) -> None: ...

    def nvmlGpmMetricsGet(self, request: Any) -> Any:
        assert request.numMetrics == 1
        assert request.metrics[0].metricId == pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL
        request.metrics[0].value = 50.0
        return request

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return f"GPU {handle}"

    def nvmlSystemGetDriverVersion(self) -> str:
        return "570.1"


def sampled(fake: FakeDriver, n: int = 20) -> Any:
    sampler = Sampler(CUDA)
    with sampler.sampling():
        while fake.n_samples < n:
            time.sleep(0.001)
    return sampler.use()


def test_what_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDriver().install(monkeypatch)
    use = sampled(fake)
    assert use.util_frac == pytest.approx(0.85, abs=0.005)
    assert use.util_spread_frac == pytest.approx(0.05, abs=0.005)
    assert (use.memory_busy_frac, use.power_w, use.reason) == (pytest.approx(0.4), 250.0, None)
    assert use.memory_bytes == 1000 + fake.n_samples
    # Half of 2 transfers · 2 GHz · 640 bytes.
    assert use.gb_per_s == pytest.approx(1280.0)


def test_nothing_is_sampled_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDriver().install(monkeypatch)
    sampled(fake)
    n_samples = fake.n_samples
    time.sleep(0.02)
    assert fake.n_samples == n_samples


def test_a_refusal_costs_its_own_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    use = sampled(FakeDriver(refused=("nvmlDeviceGetPowerUsage",), has_gpm=False).install(monkeypatch))
    assert (use.power_w, use.gb_per_s) == (None, None)
    assert use.util_frac == pytest.approx(0.85, abs=0.01)
    assert use.reason == "GPM: Not Supported; power: Not Supported"


@pytest.mark.parametrize("refused", ["nvmlInit", "nvmlDeviceGetHandleByPciBusId"])
def test_without_nvml_all_is_missing_and_said(monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    fake = FakeDriver(refused=(refused,)).install(monkeypatch)
    sampler = Sampler(CUDA)
    with sampler.sampling():
        pass
    use = sampler.use()
    assert (use.util_frac, use.util_spread_frac, use.power_w, use.memory_bytes) == (None,) * 4
    assert use.reason == "NVML: Not Supported"
    assert fake.n_samples == 0


def test_the_driver_names_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDriver().install(monkeypatch)
    found = driver()
    assert (found.version, found.gpus, found.reason) == ("570.1", ("GPU 0", "GPU 1"), None)


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDriver(refused=("nvmlInit",)).install(monkeypatch)
    found = driver()
    assert (found.version, found.gpus, found.reason) == (None, (), "Not Supported")
