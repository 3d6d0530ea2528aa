"""What is said of machines that lack something; and one real examination."""

import json
import os
import platform
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from colakit import nvml
from colakit.bench import doctor, peaks
from colakit.bench.peaks import matmul_flops_per_s, measure_peaks
from colakit.build import Machine
from colakit.host import describe_machine
from colakit.records.machine import Finding

CPU = Machine(torch.device("cpu"), torch.float32)
HERE = replace(describe_machine(), gpu=None, cuda=None, usable_cpus=4, threads=4)


def test_a_real_examination() -> None:
    """In a process of its own: what torch.compile imports changes how operations are dispatched."""
    command = [sys.executable, "-m", "colakit", "doctor", "--json"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    record = json.loads(done.stdout)
    named = {finding["name"]: finding for finding in record["findings"]}
    assert {"CPU", "memory", "GPU", "bfloat16", "torch.compile", "attention", "Hugging Face hub"} <= named.keys()
    assert named["torch.compile"]["state"] in ("ok", "missing")
    assert "HF_HUB_OFFLINE" in named["Hugging Face hub"]["value"]
    for finding in record["findings"]:
        assert finding["state"] == "ok" or finding["advice"]
    for peak in record["peaks"]:
        assert 1e9 < peak["matmul_flops_per_s"] < 1e17
        assert 1e8 < peak["bytes_per_s"] < 1e14
    assert record["machine"]["python"] == platform.python_version()


def test_peaks_are_work_over_the_fastest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that gives 4, 2, 3 seconds to three calls, of a product of 8 and of a copy of 100 bytes."""
    ticks = iter([0.0, *(0.0, 4.0, 5.0, 7.0, 10.0, 13.0), 99.0] * 2)
    now = [0.0]

    def clock() -> float:
        now[0] = next(ticks)
        return now[0]

    monkeypatch.setattr(peaks, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setitem(peaks._SIDE, "cpu", 8)
    monkeypatch.setitem(peaks._COPIED_BYTES, "cpu", 100)
    record = measure_peaks(CPU)
    assert (record.matmul_flops_per_s, record.bytes_per_s) == (2 * 8**3 / 2.0, 2 * 100 / 2.0)


def test_a_product_in_bfloat16_is_computed_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    honest = torch.mm

    def mm(a: torch.Tensor, b: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append((a.dtype, b.dtype, tuple(a.shape)))
        return honest(a, b, **options)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(peaks, "_SECONDS", 0.0)
    assert matmul_flops_per_s(CPU.device, torch.bfloat16, 16) > 0
    assert set(seen) == {(torch.bfloat16, torch.bfloat16, (16, 16))}


@pytest.mark.parametrize(
    ("bfloat16", "state", "said"), [(1.0, "limited", "products 4.0 times slower"), (8.0, "ok", "products 2.0 times")]
)
def test_bfloat16_is_judged_by_its_speed(
    monkeypatch: pytest.MonkeyPatch, bfloat16: float, state: str, said: str
) -> None:
    monkeypatch.setattr(doctor, "matmul_flops_per_s", lambda _, dtype, __: bfloat16 if dtype.itemsize == 2 else 4.0)
    finding = doctor._bfloat16(CPU)
    assert finding.state == state
    assert said in finding.value
    assert "train.dtype" in (finding.advice or "")


def gpu(monkeypatch: pytest.MonkeyPatch, driver: nvml.Driver, **machine: Any) -> list[Finding]:
    monkeypatch.setattr(nvml, "driver", lambda: driver)
    return list(doctor._gpu(replace(HERE, **machine)))


def test_a_gpu_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    there = nvml.Driver("570.1", ("RTX 4090",), None)
    (built_for_cpu,) = gpu(monkeypatch, there)
    (old_driver,) = gpu(monkeypatch, there, cuda="13.0")
    assert "built for CPUs" in (built_for_cpu.advice or "")
    assert "Update the driver" in (old_driver.advice or "")
    assert (built_for_cpu.state, old_driver.state) == ("limited", "limited")


def test_a_gpu_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    card = {"gpu": "RTX 4090", "gpu_memory_gib": 24.0, "cuda": "13.0"}
    found, instrument = gpu(monkeypatch, nvml.Driver(None, (), "Insufficient Permissions"), **card)
    assert (found.state, instrument.state, instrument.value) == ("ok", "missing", "Insufficient Permissions")
    assert [f.state for f in gpu(monkeypatch, nvml.Driver("570.1", ("RTX 4090",), None), **card)] == ["ok", "ok"]


def test_without_a_compiler_it_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", refuse)
    finding = doctor._compiler(CPU)
    assert (finding.state, finding.value) == ("missing", "no working C++ compiler found")
    assert "a C++ compiler" in (finding.advice or "")


def test_too_many_threads_are_told() -> None:
    assert doctor._cpu(HERE).state == "ok"
    finding = doctor._cpu(replace(HERE, threads=5))
    assert finding.state == "limited"
    assert "OMP_NUM_THREADS=4" in (finding.advice or "")


@pytest.mark.parametrize(("free_gib", "state"), [(3, "limited"), (5, "ok")])
def test_scarce_memory_is_told(monkeypatch: pytest.MonkeyPatch, free_gib: int, state: str) -> None:
    monkeypatch.setattr(doctor, "free_memory", lambda: free_gib * 2**30)
    assert doctor._memory(HERE).state == state


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Any] = {
        "ok": SimpleNamespace(close=lambda: None),
        "denied": urllib.error.HTTPError("https://hub", 403, "no", None, None),  # type: ignore[arg-type]
        "silent": TimeoutError("timed out"),
    }
    states = {}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name, answer in answers.items():

        def urlopen(*_: Any, answer: Any = answer, timeout: float) -> Any:
            assert timeout <= 5.0
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        states[name] = doctor._hub().state
    assert states == {"ok": "ok", "denied": "ok", "silent": "missing"}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in doctor._hub().value


@pytest.mark.parametrize(("free_gib", "state"), [(9, "limited"), (11, "ok")])
def test_a_cache_that_does_not_exist_yet_is_on_the_disk_of_its_parent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_gib: int, state: str
) -> None:
    asked = []

    def disk_usage(path: Path) -> Any:
        asked.append(path)
        return SimpleNamespace(free=free_gib * 2**30)

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "there"))
    assert [f.state for f in doctor._disks()] == [state] * 2
    assert asked[1] == tmp_path
