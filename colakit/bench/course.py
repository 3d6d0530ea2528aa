"""One contestant in a process of its own: built, warmed up, then timed a few steps at a time."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

import psutil
import torch
from torch.profiler import ProfilerActivity, profile

from colakit import nvml
from colakit.bench.contestant import Contestant
from colakit.bench.peers import LlamaStep, OwnStep
from colakit.bench.random_data import random_batches
from colakit.bench.storages import LiveStorages
from colakit.build import Machine
from colakit.host import give_back_freed_memory, peak_resident_memory, usable_cpus
from colakit.optim.clock import Clock
from colakit.parallel.shards import here
from colakit.parallel.traffic import Traffic, communicating_ms
from colakit.parallel.world import ALONE, World
from colakit.records.run import OptimizerPart
from colakit.units import gib

WARMUP_STEPS = 2
"""The first makes the optimizer's state, and whatever is compiled; in the second memory is followed."""

RETAKING_STEPS = 2
"""Which are not timed, where memory was given back: a heap that is filled anew is not laid out as before at once."""


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
    forward_ms: float
    backward_ms: float
    optimizer: tuple[OptimizerPart, ...]
    first_step_s: float
    memory: Memory
    parameters: int
    cpu_util_frac: float
    gpu: nvml.GpuUse | None
    sent: Mapping[str, int] | None = None
    """Bytes that this process sends in a step, by the kind of collective; None where it is alone."""
    communicating_frac: float | None = None
    """Share of a step's time in which a collective is under way."""


class _Parts(NamedTuple):
    """Medians of a turn: a step's passes, and its update."""

    forward_ms: float
    backward_ms: float
    optimizer: tuple[OptimizerPart, ...]


class NotCompiledError(Exception):
    """torch.compile has failed, so that what would be measured is the eager step."""


class Course:
    """Steps of `contestant` on random tokens, which the trainer's own loader reads and a thread makes ready."""

    def __init__(
        self, contestant: Contestant, machine: Machine, *, gives_back: bool = False, world: World = ALONE
    ) -> None:
        """With `gives_back`, others have what a step needs between its turns; else it is kept, as in training."""
        config = contestant.config
        self._world = world
        self._gives_back = gives_back
        machine = replace(machine, compiles=contestant.compiled)
        self._machine, self._device = machine, machine.device
        self._on_cuda = self._device.type == "cuda"
        self._step: LlamaStep | OwnStep
        if contestant.peer == "hf-llama":
            self._step = LlamaStep(config, machine)
        else:
            self._step = OwnStep(config, machine, torch_muon=contestant.peer == "torch-muon", world=world)
        self._batches = random_batches(config, world)
        self._n_micro = -(-contestant.own_batch_size // config.train.micro_batch_size_of(world.size))
        self._n_steps = self._skipped = 0
        self._times: list[float] = []
        self._data_times: list[float] = []
        self._cpu_s = 0.0
        self._cpus = contestant.threads or usable_cpus()
        self._sampler = nvml.Sampler(self._device) if self._on_cuda else None
        self._first_step_s = 0.0
        self._parts: list[_Parts] = []
        self._memory: Memory | None = None
        self._sent: Mapping[str, int] | None = None
        self._communicating_frac: float | None = None

    def warm_up(self) -> float:
        """The steps that are not timed; how many seconds the last ordinary one took. Raises NotCompiledError."""
        if self._on_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        self._first_step_s = self._one()[0]
        if self._machine.compiles and not self._step.is_compiled:
            raise NotCompiledError
        self._memory = self._measure_memory()
        if self._world.size > 1:
            self._measure_sharing()
        taken = self._one()[0]
        self._skipped = 0
        self._give_back()
        return taken

    def turn(self, n_steps: int) -> float:
        """Time so many steps; their seconds in all."""
        if self._gives_back:
            skipped = self._skipped
            for _ in range(RETAKING_STEPS):
                self._one()
            self._skipped = skipped
        process, before = psutil.Process(), psutil.Process().cpu_times()
        with self._sampler.sampling() if self._sampler is not None else nullcontext():
            for _ in range(n_steps):
                taken, waited = self._one()
                self._times.append(taken)
                self._data_times.append(waited)
        after = process.cpu_times()
        self._cpu_s += after.user + after.system - before.user - before.system
        forward, backward = (self._pass_ms(c, n_steps) for c in (self._step.forward_clock, self._step.backward_clock))
        self._parts.append(_Parts(forward, backward, self._step.optimizer_costs(last=n_steps)))
        self._give_back()
        return sum(self._times[-n_steps:])

    def figures(self) -> Figures:
        """Of all turns."""
        assert self._memory is not None
        optimizer = zip(*(part.optimizer for part in self._parts), strict=True)
        return Figures(
            times=tuple(self._times),
            data_times=tuple(self._data_times),
            skipped=self._skipped,
            forward_ms=median(part.forward_ms for part in self._parts),
            backward_ms=median(part.backward_ms for part in self._parts),
            optimizer=tuple(replace(each[0], ms=median(part.ms for part in each)) for each in optimizer),
            first_step_s=self._first_step_s,
            memory=self._memory,
            parameters=sum(p.numel() for p in self._step.model.parameters()),
            cpu_util_frac=self._cpu_s / max(1e-9, sum(self._times)) / self._cpus,
            gpu=self._sampler.use() if self._sampler is not None else None,
            sent=self._sent,
            communicating_frac=self._communicating_frac,
        )

    def close(self) -> None:
        """End the loader's thread."""
        self._batches.close()

    def _pass_ms(self, clock: Clock, n_steps: int) -> float:
        """Of all micro-batches of a step, the median of the last so many."""
        ms = clock.median_ms(last=n_steps * self._n_micro)
        assert ms is not None
        return self._n_micro * ms

    def _give_back(self) -> None:
        if not self._gives_back:
            return
        if self._on_cuda:
            torch.cuda.empty_cache()
        else:
            give_back_freed_memory()

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
        parameters = [here(p.detach()) for p in self._step.model.parameters()]
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

    def _measure_sharing(self) -> None:
        """In two more steps that are not timed: one counted, one looked at by torch's profiler."""
        with Traffic(self._world.rank, self._world.size) as traffic:
            self._one()
        activity = ProfilerActivity.CUDA if self._on_cuda else ProfilerActivity.CPU
        with profile(activities=[activity]) as watched:
            taken, _ = self._one()
        self._sent = dict(traffic.sent)
        ms = communicating_ms(watched.events() or [], on_cuda=self._on_cuda)
        self._communicating_frac = min(1.0, ms / 1000.0 / taken)

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
