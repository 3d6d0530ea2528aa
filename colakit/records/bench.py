"""What `colakit bench` measures."""

from dataclasses import dataclass, field
from typing import ClassVar

from colakit.records.base import Record
from colakit.records.machine import MachineRecord, PeakRecord
from colakit.records.run import OptimizerPart

BY_ADAMW = " by AdamW"
"""Behind the name of a preset that trains by Muon, where it is measured with AdamW in its place."""


@dataclass(frozen=True)
class PaperFigure:
    """What the paper prints in the place of a measured figure."""

    quantity: str
    value: float
    unit: str
    table: str
    row: str


@dataclass(frozen=True)
class BenchRecord(Record):
    """Speed and memory of one preset at one batch size; what could not be had is None, with the reason.

    Times are medians over all timed steps. Of a step that has several micro-batches, forward and backward are the sums.
    """

    kind: ClassVar[str] = "bench"
    preset: str
    optimizer: str
    batch_size: int
    micro_batch_size: int
    seq_len: int
    device: str
    dtype: str
    attention: str
    compiled: bool
    claim: PaperFigure | None
    """Of its speed."""
    claims: tuple[PaperFigure, ...] = ()
    """All that the paper prints of it at this size, `claim` included. Its tables do not always agree."""
    repeats: int = 0
    """Turns that it had, each between those of the others."""
    steps: int = 0
    """Timed, in all its turns."""
    it_per_s: float | None = None
    """Optimizer steps per second, from the median step time."""
    examples_per_s: float | None = None
    tokens_per_s: float | None = None
    step_ms: float | None = None
    step_ms_p10: float | None = None
    step_ms_p90: float | None = None
    step_spread_frac: float | None = None
    """Between the two, as a share of the median."""
    forward_ms: float | None = None
    backward_ms: float | None = None
    optimizer_ms: float | None = None
    data_ms: float | None = None
    """Wait for the next batch, which a thread makes ready."""
    first_step_s: float | None = None
    """With whatever is compiled, and the first allocations."""
    optimizer_parts: tuple[OptimizerPart, ...] = ()
    peak_memory_gib: float | None = None
    """Most bytes of tensors at once: by CUDA's allocator; on a CPU, of a step whose storages are followed."""
    reserved_gib: float | None = None
    """By CUDA's allocator."""
    device_gib: float | None = None
    """On CUDA all that is in use on the card; on a CPU the process's peak resident memory."""
    weights_gib: float | None = None
    gradients_gib: float | None = None
    optimizer_gib: float | None = None
    activations_gib: float | None = None
    """Between forward and backward pass."""
    alloc_retries: int | None = None
    gpu_util_frac: float | None = None
    gpu_util_spread_frac: float | None = None
    memory_busy_frac: float | None = None
    power_w: float | None = None
    gb_per_s: float | None = None
    cpu_util_frac: float | None = None
    """Of the CPUs that the process may use; of several processes, of those that are its share."""
    mfu_frac: float | None = None
    """Model FLOPs per second over the measured peak of a matrix product."""
    model_flops: int | None = None
    """Of a step, counted."""
    processes: int = 1
    """That share the batch. Memory is that of the one that holds most."""
    strategy: str | None = None
    """By which they share it."""
    threads: int | None = None
    """Of each process, where not all CPUs are its own."""
    efficiency_frac: float | None = None
    """Tokens per second over those of as many processes alone, each with as large a batch."""
    sent_bytes: dict[str, int] = field(default_factory=dict)
    """By each process in a step, on average, by the kind of collective, as the usual algorithms send it."""
    communicating_frac: float | None = None
    """Share of a step in which a collective is under way, the wait for others included."""
    not_run_s: float | None = None
    """How long it would have taken at least, where that was too long."""
    reason: str | None = None

    @property
    def name(self) -> str:
        """Whose figures they are, and how they came about."""
        shared = f", {self.strategy} x {self.processes}" if self.processes > 1 else ""
        return f"{self.preset}{shared}, compiled" if self.compiled else f"{self.preset}{shared}"


@dataclass(frozen=True)
class PeerBenchRecord(Record):
    """The same step by another library; `preset` gave the shape."""

    kind: ClassVar[str] = "bench_peer"
    name: str
    preset: str
    batch_size: int
    seq_len: int
    dtype: str
    parameters: int | None = None
    tokens_per_s: float | None = None
    step_ms: float | None = None
    peak_memory_gib: float | None = None
    repeats: int = 0
    not_run_s: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class RatioRecord(Record):
    """Of two contestants of one run, at the same batch size and sequence length."""

    kind: ClassVar[str] = "bench_ratio"
    of: str
    over: str
    batch_size: int
    tokens_per_s: float
    peak_memory: float | None
    paper: float | None
    """What the paper's own figures of speed come to, where it has both."""
    paper_memory: float | None = None
    """And those of memory."""


@dataclass(frozen=True)
class BenchReport(Record):
    """One run of the command."""

    kind: ClassVar[str] = "bench_report"
    machine: MachineRecord
    peak: PeakRecord
    budget_s: float
    seconds: float
    results: tuple[BenchRecord, ...]
    peers: tuple[PeerBenchRecord, ...]
    ratios: tuple[RatioRecord, ...]

    @property
    def has_results(self) -> bool:
        """Whether anyone was measured."""
        speeds = [*(r.tokens_per_s for r in self.results), *(p.tokens_per_s for p in self.peers)]
        return any(speed is not None for speed in speeds)


@dataclass(frozen=True)
class ProbeRecord(Record):
    """One size, tried in a process of its own."""

    kind: ClassVar[str] = "bench_probe"
    batch_size: int
    steps: int
    """Asked for; an evaluation comes after the first."""
    fits: bool
    peak_gib: float | None
    """On CUDA what the allocator took, on a CPU what was resident; None where it was ended."""
    seconds: float
    reason: str | None


@dataclass(frozen=True)
class MaxBatchRecord(Record):
    """The largest micro-batch of a preset that trains within a limit of memory."""

    kind: ClassVar[str] = "max_batch"
    preset: str
    optimizer: str
    seq_len: int
    device: str
    dtype: str
    attention: str
    compiled: bool
    claim: PaperFigure | None
    limit_gib: float
    margin_frac: float
    """Of the limit, which stays free."""
    batch_size: int
    """The preset's own, which is kept."""
    by_ledger: int
    """Sequences for which there is room by the ledger alone."""
    predicted: int
    """By the ledger, and what the first try was seen to take."""
    max_batch: int | None = None
    """Sequences."""
    is_bounded: bool = False
    """Whether a larger one was seen not to fit; else the time was up before."""
    steps: int | None = None
    """That it made, in the last try."""
    peak_gib: float | None = None
    micro_batch_size: int | None = None
    """The largest that fits and divides `batch_size`."""
    probes: tuple[ProbeRecord, ...] = ()
    not_run_s: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class MaxBatchReport(Record):
    """One run of ``bench --max-batch``."""

    kind: ClassVar[str] = "max_batch_report"
    machine: MachineRecord
    budget_s: float
    seconds: float
    results: tuple[MaxBatchRecord, ...]

    @property
    def has_results(self) -> bool:
        """Whether any batch was found."""
        return any(record.max_batch is not None for record in self.results)


@dataclass(frozen=True)
class ComparisonRecord(Record):
    """One contestant in two reports."""

    kind: ClassVar[str] = "bench_comparison"
    name: str
    batch_size: int
    seq_len: int
    before_tokens_per_s: float
    after_tokens_per_s: float | None
    """None where the second report has no such figure."""
    speed: float | None
    """After over before."""
    peak_memory: float | None
    """After over before."""
    is_worse: bool
    """By more than the threshold, or gone."""


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
