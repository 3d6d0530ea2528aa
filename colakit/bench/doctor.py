"""What this machine can do for colakit, found by trying it, and what to do about what is missing."""

import importlib.util
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from colakit import nvml
from colakit.bench.peaks import matmul_flops_per_s, measure_peaks
from colakit.build import Machine, pick_machine
from colakit.config.schema import DataConfig, RunConfig
from colakit.data.cache import cache_root
from colakit.errors import DataError
from colakit.host import describe_machine, free_memory
from colakit.records.machine import DoctorRecord, Finding, MachineRecord
from colakit.units import GIB, gib

_SCARCE_MEMORY = 4 * GIB
_SCARCE_DISK = 10 * GIB
_HUB_TIMEOUT_S = 5.0
_BF16_SIDE = 384
"""Small, since a CPU that emulates bfloat16 takes some 50 times as long."""


def examine() -> DoctorRecord:
    """Everything, in half a minute or less. Nothing that is missing raises."""
    machine = pick_machine(RunConfig())
    described = describe_machine()
    findings = (
        _cpu(described),
        _memory(described),
        *_gpu(described),
        _bfloat16(machine),
        _compiler(machine),
        _flash_attention(machine),
        _hub(),
        *_disks(),
    )
    peaks = [measure_peaks(machine)]
    if machine.dtype != torch.float32:
        peaks.append(measure_peaks(Machine(machine.device, torch.float32)))
    return DoctorRecord(described, findings, tuple(peaks))


def _cpu(m: MachineRecord) -> Finding:
    value = f"{m.cpu}, {m.usable_cpus} usable CPUs, {m.cpu_capability}, {m.threads} threads, products by {m.products}"
    if m.threads > m.usable_cpus:
        advice = f"More threads than CPUs slow each other down: set OMP_NUM_THREADS={m.usable_cpus}."
        return Finding("CPU", "limited", value, advice)
    return Finding("CPU", "ok", value, None)


def _memory(m: MachineRecord) -> Finding:
    free = free_memory()
    value = f"{m.memory_gib:.1f} GiB, {gib(free):.1f} free"
    if free < _SCARCE_MEMORY:
        advice = "Close other programs, or keep to --smoke and small batches: `colakit params --memory` counts them."
        return Finding("memory", "limited", value, advice)
    return Finding("memory", "ok", value, None)


def _gpu(m: MachineRecord) -> Iterator[Finding]:
    driver = nvml.driver()
    if m.gpu is not None:
        yield Finding("GPU", "ok", f"{m.gpu}, {m.gpu_memory_gib:.1f} GiB, CUDA {m.cuda}", None)
        if driver.version is None:
            advice = (
                "bench shows no utilisation and no power. In a container, let the driver's utilities in "
                "(NVIDIA_DRIVER_CAPABILITIES=compute,utility); under WSL, update the driver of Windows."
            )
            yield Finding("NVML", "missing", str(driver.reason), advice)
        else:
            yield Finding("NVML", "ok", f"driver {driver.version}", None)
    elif driver.gpus:
        value = f"{', '.join(driver.gpus)}, driver {driver.version}; torch {torch.__version__} does not see it"
        if m.cuda is None:
            advice = "This torch is built for CPUs: install the build for your driver, see https://pytorch.org."
        else:
            advice = f"Update the driver to one for CUDA {m.cuda}, and look at CUDA_VISIBLE_DEVICES."
        yield Finding("GPU", "limited", value, advice)
    else:
        advice = "Everything runs on the CPU, slowly at full size: begin with --smoke."
        yield Finding("GPU", "missing", f"none ({driver.reason or 'NVML knows none'})", advice)


def _bfloat16(machine: Machine) -> Finding:
    """By what a small product reaches, whatever the processor claims."""
    speed = {dtype: matmul_flops_per_s(machine.device, dtype, _BF16_SIDE) for dtype in (torch.bfloat16, torch.float32)}
    ratio = speed[torch.bfloat16] / speed[torch.float32]
    advice: str | None = None
    if ratio < 1.0:
        advice = f"train.dtype=auto computes in {str(machine.dtype).removeprefix('torch.')} here."
        return Finding("bfloat16", "limited", f"products {1 / ratio:.1f} times slower than in float32", advice)
    if machine.dtype == torch.float32:
        advice = "train.dtype=auto computes in float32 on a CPU: try --set train.dtype=bfloat16."
    return Finding("bfloat16", "ok", f"products {ratio:.1f} times as fast as in float32", advice)


def _compiler(machine: Machine) -> Finding:
    """By compiling something small."""
    try:
        x = torch.ones(64, device=machine.device)
        torch.compile(lambda t: (t.sin() + 1.0) * t, fullgraph=True)(x)
    except Exception as error:  # torch has no common class for all that can be missing
        needs = "Triton (`pip install triton`) and a C compiler" if machine.device.type == "cuda" else "a C++ compiler"
        advice = f"It needs {needs}, such as gcc. Everything else runs without."
        return Finding("torch.compile", "missing", _first_line(error), advice)
    finally:
        torch.compiler.reset()
    return Finding("torch.compile", "ok", "compiles and runs", None)


def _flash_attention(machine: Machine) -> Finding:
    name = "attention"
    auto = f"auto picks {machine.attention}"
    if importlib.util.find_spec("flash_attn") is not None:
        return Finding(name, "ok", f"{auto}; flash-attn {metadata.version('flash-attn')} is installed", None)
    if machine.device.type == "cuda":
        advice = "PyTorch's own kernels serve as well; for flash-attn: `pip install 'colakit[flash]'`."
        return Finding(name, "ok", f"{auto}; flash-attn is not installed", advice)
    return Finding(name, "ok", f"{auto}; flash-attn is for CUDA", None)


def _hub() -> Finding:
    from huggingface_hub import constants

    advice = (
        "--smoke and --data FILE need no network; downloads made elsewhere are found through HF_HOME "
        f"({constants.HF_HOME} here)."
    )
    if constants.HF_HUB_OFFLINE:
        return Finding("Hugging Face hub", "missing", "switched off by HF_HUB_OFFLINE", advice)
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        return Finding(
            "Hugging Face hub", "missing", f"{constants.ENDPOINT}: {getattr(error, 'reason', error)}", advice
        )
    return Finding("Hugging Face hub", "ok", f"{constants.ENDPOINT} answers", None)


def _disks() -> Iterator[Finding]:
    try:
        folders = {"disk for runs": Path.cwd(), "disk for the cache": cache_root(DataConfig())}
    except (OSError, DataError) as error:
        yield Finding("disk", "missing", _first_line(error), "Set XDG_CACHE_HOME, or data.cache_dir, to a folder.")
        return
    for name, folder in folders.items():
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free, writable = shutil.disk_usage(there).free, os.access(there, os.W_OK)
        value = f"{gib(free):.1f} GiB free at {folder}" + ("" if writable else ", which cannot be written")
        if free < _SCARCE_DISK or not writable:
            advice = "Checkpoints and prepared data need room: choose --out and data.cache_dir elsewhere."
            yield Finding(name, "limited", value, advice)
        else:
            yield Finding(name, "ok", value, None)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
