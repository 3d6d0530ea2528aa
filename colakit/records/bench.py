"""What `colakit bench` measures."""

from dataclasses import dataclass
from typing import ClassVar

from colakit.records.base import Record
from colakit.records.run import OptimizerPart


@dataclass(frozen=True)
class BenchRecord(Record):
    """Speed and peak memory of one preset at one batch size; what could not be had is None, with the reason."""

    kind: ClassVar[str] = "bench"
    preset: str
    batch_size: int
    seq_len: int
    device: str
    dtype: str
    attention: str
    steps: int
    it_per_s: float | None
    """Optimizer steps per second, from the median step time."""
    examples_per_s: float | None
    tokens_per_s: float | None
    step_ms: float | None
    optimizer: tuple[OptimizerPart, ...]
    """Its parts; empty where nothing was measured."""
    vram_gib: float | None
    """Peak memory that torch allocated on the GPU."""
    rss_gib: float | None
    """Peak resident memory of the measuring process."""
    reason: str | None


@dataclass(frozen=True)
class OptimizerBenchRecord(Record):
    """A step of Muon, of its textbook form, of ``torch.optim.Muon`` and of AdamW, on the same matrices."""

    kind: ClassVar[str] = "optimizer_bench"
    preset: str
    device: str
    dtype: str
    """In which Muon multiplies."""
    matrices: int
    parameters: int
    repeats: int
    """Interleaved; every time is a median."""
    muon_ms: float
    textbook_ms: float
    """Eq. 15 as printed, batched by shape, in the same type."""
    torch_muon_ms: float
    adamw_ms: float
    """Fused."""
    textbook_over_muon: float
    torch_muon_over_muon: float
    muon_over_adamw: float
    muon_flops: int
    state_bytes: int
    """Muon's: one momentum per parameter."""
    workspace_bytes: int
    """What its step holds besides, at most: all matrices of one shape."""
    reason: str | None
    """How a figure was had that is not what it would be elsewhere."""
