"""The machine this process runs on: hardware, versions, and how much memory is left for it."""

import ctypes
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil
import torch

from colakit import nvml, products
from colakit.records.machine import MachineRecord
from colakit.units import gib

_PACKAGES = (
    "colakit", "torch", "numpy", "datasets", "tokenizers", "transformers", "safetensors", "triton", "flash-attn"
)  # fmt: skip


def describe_machine() -> MachineRecord:
    """Hardware, versions, and the git commit of the source tree colakit runs from."""
    status = _git("status", "--porcelain")
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device()) if torch.cuda.is_available() else None
    return MachineRecord(
        platform=platform.platform(),
        cpu=_cpu_name(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        products=products.library(),
        cores=psutil.cpu_count(logical=False),
        usable_cpus=usable_cpus(),
        threads=torch.get_num_threads(),
        memory_gib=gib(total_memory()),
        gpu=gpu.name if gpu else None,
        gpu_memory_gib=gib(gpu.total_memory) if gpu else None,
        compute_capability=f"{gpu.major}.{gpu.minor}" if gpu else None,
        driver=nvml.driver().version,
        cuda=torch.version.cuda,
        python=platform.python_version(),
        packages={name: _version(name) for name in _PACKAGES},
        git_commit=_git("rev-parse", "HEAD"),
        git_dirty=bool(status) if status is not None else None,
    )


def _version(package: str) -> str | None:
    """The one that is imported, where several are installed; None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def usable_cpus() -> int:
    """Logical CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def total_memory() -> int:
    """Bytes that processes here may use together: the machine's, or a control group's limit where that is less."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _control_group_limits())])


def free_memory() -> int:
    """Bytes that can be had without swapping, below every limit of the control groups this process is in."""
    return min([psutil.virtual_memory().available, *(limit - used for limit, used in _control_group_limits())])


def peak_resident_memory() -> int:
    """Bytes that this process has held at most; those it holds now, on a platform that does not tell."""
    if sys.platform == "linux":  # getrusage counts what the parent held at the fork too
        status = Path("/proc/self/status").read_text("ascii")
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
    try:
        import resource
    except ImportError:
        return psutil.Process().memory_info().rss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def keep_freed_memory() -> None:
    """Let the C library keep what this process frees for what it asks next, where that is glibc.

    Else every large tensor is given back to the system when it is freed, and the next one's pages are cleared and
    mapped anew, one by one: 5 % to 30 % of a step on a CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)  # never


def give_back_freed_memory() -> None:
    """What is kept, this once, where the C library is glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Of malloc.h."""

_CONTROL_GROUPS = Path("/sys/fs/cgroup")


def _control_group_limits() -> list[tuple[int, int]]:
    """Limit and use, in bytes, of each control group above this process that limits memory; psutil knows none."""
    limits = []
    try:
        lines = Path("/proc/self/cgroup").read_text("ascii").splitlines()
    except (OSError, ValueError):
        return []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers == "":
            root, names = _CONTROL_GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            root = _CONTROL_GROUPS / "memory"
        else:
            continue
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if (found := _limit_and_use(group, *names)) is not None:
                limits.append(found)
            if group == root:
                break
    return limits


def _limit_and_use(group: Path, limit_file: str, use_file: str, cache: str) -> tuple[int, int] | None:
    """None where the group sets no limit. Files that are cached count as free, as they do for the machine."""
    try:
        limit, used = (int((group / name).read_text("ascii")) for name in (limit_file, use_file))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines())
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return limit, used - int(statistics.get(cache, 0))


def _cpu_name() -> str:
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        fields = (line.partition(":") for line in lines)
        names = [value.strip() for key, _, value in fields if key.strip() == "model name"]  # ARM has none
    elif sys.platform == "darwin":
        names = [_output(["sysctl", "-n", "machdep.cpu.brand_string"]) or ""]
    else:
        names = []
    return next(filter(None, [*names, platform.processor(), platform.machine()]), "unknown")


def _git(*arguments: str) -> str | None:
    """What git prints about the source tree; None where this file is not tracked, as in an installed package."""
    source = Path(__file__)
    tracked = _output(["git", "-C", str(source.parent), "ls-files", "--error-unmatch", source.name])
    return _output(["git", "-C", str(source.parent), *arguments]) if tracked is not None else None


def _output(command: list[str]) -> str | None:
    """What `command` prints; None where it cannot be run, or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
