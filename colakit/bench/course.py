"""One contestant in a process of its own: built, warmed up, then timed a few steps at a time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import psutil
import torch

from colakit import nvml
from colakit.bench.contestant import Contestant
from colakit.bench.peers import LlamaStep, OwnStep
from colakit.bench.random_data import random_batches
from colakit.bench.storages import LiveStorages
from colakit.build import Machine
from colakit.host import peak_resident_memory, usable_cpus
from colakit.records.run import OptimizerPart
from colakit.units import gib

WARMUP_STEPS = 2
"""The first makes the optimizer's state, and whatever is compiled; in the second memory is followed."""


@dataclass(frozen=True)
class Memory:
    """In GiB; None where it cannot be had."""

    peak: float | None
    reserved: float | None
    device: float | None
    weights: float
    gradients: float
    optimizer: float
    activations: float | None
    retries: int | None


@dataclass(frozen=True)
class Figures:
    """Everything about a contestant's timed steps."""

    times: tuple[float, ...]
    """Seconds of each."""
    data_times: tuple[float, ...]
    skipped: int
    """How many made no update."""
    forward_ms: float | None
    backward_ms: float | None
    optimizer: tuple[OptimizerPart, ...]
    first_step_s: float
    memory: Memory
    parameters: int
    cpu_util_frac: float
    gpu: nvml.GpuUse | None


class NotCompiledError(Exception):
    """torch.compile has failed, so that what would be measured is the eager step."""


class Course:
    """Steps of `contestant` on random tokens, which the trainer's own loader reads and a thread makes ready."""

    def __init__(self, contestant: Contestant, machine: Machine) -> None:
        config = contestant.config
        machine = replace(machine, compiles=contestant.compiled)
        self._machine, self._device = machine, machine.device
        self._on_cuda = self._device.type == "cuda"
        self._step: LlamaStep | OwnStep
        if contestant.peer == "hf-llama":
            self._step = LlamaStep(config, machine)
        else:
            self._step = OwnStep(config, machine, torch_muon=contestant.peer == "torch-muon")
        self._batches = random_batches(config)
        self._n_micro = -(-config.train.batch_size // config.train.effective_micro_batch_size)
        self._n_steps = self._skipped = 0
        self._times: list[float] = []
        self._data_times: list[float] = []
        self._cpu_s = 0.0
        self._sampler = nvml.Sampler(self._device) if self._on_cuda else None
        self._first_step_s = 0.0
        self._memory: Memory | None = None

    def warm_up(self) -> float:
        """The steps that are not timed; how many seconds the last ordinary one took. Raises NotCompiledError."""
        if self._on_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        self._first_step_s = self._one()[0]
        if self._machine.compiles and not self._step.is_compiled:
            raise NotCompiledError
        self._memory = self._measure_memory()
        taken = self._one()[0]
        self._skipped = 0
        return taken

    def turn(self, n_steps: int) -> float:
        """Time so many steps; their seconds in all."""
        process, before = psutil.Process(), psutil.Process().cpu_times()
        with self._sampler.sampling() if self._sampler is not None else nullcontext():
            for _ in range(n_steps):
                taken, waited = self._one()
                self._times.append(taken)
                self._data_times.append(waited)
        after = process.cpu_times()
        self._cpu_s += after.user + after.system - before.user - before.system
        if self._on_cuda:
            torch.cuda.empty_cache()  # room for the others, while they take theirs
        return sum(self._times[-n_steps:])

    def figures(self) -> Figures:
        """Of all turns."""
        assert self._memory is not None
        n = len(self._times)
        forward, backward = (
            clock.median_ms(last=n * self._n_micro) for clock in (self._step.forward_clock, self._step.backward_clock)
        )
        return Figures(
            times=tuple(self._times),
            data_times=tuple(self._data_times),
            skipped=self._skipped,
            forward_ms=None if forward is None else self._n_micro * forward,
            backward_ms=None if backward is None else self._n_micro * backward,
            optimizer=self._step.optimizer_costs(),
            first_step_s=self._first_step_s,
            memory=self._memory,
            parameters=sum(p.numel() for p in self._step.model.parameters()),
            cpu_util_frac=self._cpu_s / max(1e-9, sum(self._times)) / usable_cpus(),
            gpu=self._sampler.use() if self._sampler is not None else None,
        )

    def close(self) -> None:
        """End the loader's thread."""
        self._batches.close()

    def _one(self) -> tuple[float, float]:
        """Seconds of one step, and of them those that it waited for its data."""
        started = time.perf_counter()
        batches = next(self._batches)
        waited = time.perf_counter() - started
        self._skipped += not self._step(self._n_steps, batches)
        self._n_steps += 1
        if self._on_cuda:
            torch.cuda.synchronize(self._device)  # the optimizer's kernels run on after the step's sync
        return time.perf_counter() - started, waited

    def _measure_memory(self) -> Memory:
        """In one more step, which is not timed."""
        parameters = list(self._step.model.parameters())
        weights = sum(p.nbytes for p in parameters)
        state = self._step.optimizer_state()
        optimizer = sum(t.nbytes for t in state)
        fixed = {"weights": gib(weights), "gradients": gib(weights), "optimizer": gib(optimizer)}
        if self._on_cuda:
            with self._watching_forward(lambda: torch.cuda.memory_allocated(self._device)) as activations:
                self._one()
            counted = torch.cuda.memory_stats(self._device)
            free, total = torch.cuda.mem_get_info(self._device)
            return Memory(
                peak=gib(torch.cuda.max_memory_allocated(self._device)),
                reserved=gib(torch.cuda.max_memory_reserved(self._device)),
                device=gib(total - free),
                **fixed,
                activations=gib(max(activations)),
                retries=int(counted["num_alloc_retries"]),
            )
        if self._step.is_compiled:  # whose kernels no one can follow
            self._one()
            return Memory(None, None, gib(peak_resident_memory()), **fixed, activations=None, retries=None)
        live = LiveStorages([*parameters, *self._step.model.buffers(), *state])
        with live, self._watching_forward(lambda: live.now) as activations:
            self._one()
        peak = gib(live.peak + weights + optimizer)
        return Memory(peak, None, gib(peak_resident_memory()), **fixed, activations=gib(max(activations)), retries=None)

    @contextmanager
    def _watching_forward(self, now: Callable[[], int]) -> Iterator[list[int]]:
        """Inside, what each forward pass leaves behind, in bytes, is added to the list."""
        clock, left = self._step.forward_clock, list[int]()
        honest = clock.measure

        @contextmanager
        def measure() -> Iterator[None]:
            before = now()
            with honest():
                yield
            left.append(now() - before)

        clock.measure = measure  # type: ignore[method-assign]  # for one step
        try:
            yield left
        finally:
            clock.measure = honest  # type: ignore[method-assign]
