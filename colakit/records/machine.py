"""The machine that something was measured on, and what it can do."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from colakit.records.base import Record


@dataclass(frozen=True)
class MachineRecord(Record):
    """Hardware and versions, without which no measured figure means anything."""

    kind: ClassVar[str] = "machine"
    platform: str
    cpu: str
    cpu_capability: str
    """The vector instructions that torch's kernels use."""
    products: str
    """The library that multiplies float32 matrices on the CPU."""
    cores: int | None
    """Physical ones."""
    usable_cpus: int
    """Logical ones that this process may run on."""
    threads: int
    """torch's."""
    memory_gib: float
    """All that processes here may use together: the machine's, or its container's limit."""
    gpu: str | None
    gpu_memory_gib: float | None
    compute_capability: str | None
    driver: str | None
    """The GPU's, as NVML tells it."""
    cuda: str | None
    """The version torch was built for; None for a CPU build."""
    python: str
    packages: dict[str, str | None]
    git_commit: str | None
    """Of the source tree colakit runs from; None where it is installed."""
    git_dirty: bool | None


@dataclass(frozen=True)
class PeakRecord(Record):
    """What a device reaches at best, measured: the denominators of every utilisation."""

    kind: ClassVar[str] = "peak"
    device: str
    dtype: str
    matmul_flops_per_s: float
    """Of a square product."""
    bytes_per_s: float
    """Of a copy, what is read and what is written together."""


FindingState = Literal["ok", "missing", "limited"]


@dataclass(frozen=True)
class Finding(Record):
    """One thing a machine has, lacks or has in part, and what to do about it."""

    kind: ClassVar[str] = "finding"
    name: str
    state: FindingState
    value: str
    advice: str | None


@dataclass(frozen=True)
class DoctorRecord(Record):
    """All that ``colakit doctor`` found."""

    kind: ClassVar[str] = "doctor"
    machine: MachineRecord
    findings: tuple[Finding, ...]
    peaks: tuple[PeakRecord, ...]
