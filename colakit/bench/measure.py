"""Speed and peak memory of one configuration: the trainer's own step, timed on random tokens.

Each batch size runs in a fresh process, so that its peak memory is its own and running out of it ends nothing else.
"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import torch

from colakit.build import Machine, build_model, pick_machine
from colakit.config.schema import RunConfig
from colakit.data.loader import Batch
from colakit.records.bench import BenchRecord
from colakit.records.run import OptimizerPart
from colakit.train.step import TrainStep, is_out_of_memory
from colakit.units import gib

WARMUP_STEPS = 2
_DOCUMENT_TOKENS = 1000
"""Between the beginnings of two documents, on average, where they do not see each other: as in FineWeb-Edu."""


def bench(configs: Sequence[RunConfig], steps: int) -> Iterator[BenchRecord]:
    """Measure each configuration over `steps` optimizer steps after a warm-up; yield its record when it is there.

    They differ in batch size alone. One that runs out of memory yields a record with the reason and no figures.
    """
    machine = pick_machine(configs[0])  # the user's mistakes are reported here, not from a worker
    context = multiprocessing.get_context("spawn")
    for config in configs:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                yield pool.submit(measure, config, machine, steps).result()
            except BrokenProcessPool:
                empty = _empty_record(config, machine, steps)
                yield replace(empty, reason="the measuring process was killed, most likely for want of memory")


def measure(config: RunConfig, machine: Machine, steps: int) -> BenchRecord:
    """Time `steps` optimizer steps of `config` in this process, after a warm-up."""
    record = _empty_record(config, machine, steps)
    try:
        times, skipped, parts = _time_steps(config, machine, steps)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return replace(record, reason="out of memory")
    if skipped:  # a step without its update is no step of training
        return replace(record, reason=f"{skipped} updates skipped: loss or gradient not finite; lower optim.lr")
    step_s = statistics.median(times)
    batch = config.train.batch_size
    on_cuda = machine.device.type == "cuda"
    return replace(
        record,
        it_per_s=1.0 / step_s,
        examples_per_s=batch / step_s,
        tokens_per_s=batch * config.model.seq_len / step_s,
        step_ms=1000.0 * step_s,
        optimizer=parts,
        vram_gib=gib(torch.cuda.max_memory_allocated(machine.device)) if on_cuda else None,
        rss_gib=_peak_rss_gib(),
        reason=None if on_cuda else "no GPU, so no VRAM",
    )


def _empty_record(config: RunConfig, machine: Machine, steps: int) -> BenchRecord:
    return BenchRecord(
        preset=config.preset,
        batch_size=config.train.batch_size,
        seq_len=config.model.seq_len,
        device=str(machine),
        dtype=str(machine.dtype).removeprefix("torch."),
        attention=machine.attention,
        steps=steps,
        it_per_s=None,
        examples_per_s=None,
        tokens_per_s=None,
        step_ms=None,
        optimizer=(),
        vram_gib=None,
        rss_gib=None,
        reason=None,
    )


def _time_steps(config: RunConfig, machine: Machine, steps: int) -> tuple[list[float], int, tuple[OptimizerPart, ...]]:
    """Seconds of each step, how many made no update, and what the optimizer's parts cost."""
    step = TrainStep.of(config, build_model(config, machine).train(), machine)
    batches = _random_batches(config)
    times, skipped = [], 0
    for i in range(WARMUP_STEPS + steps):
        started = time.perf_counter()
        skipped += step(i, batches).skipped is not None
        if machine.device.type == "cuda":
            torch.cuda.synchronize(machine.device)  # the optimizer's kernels run on after the step's sync
        times.append(time.perf_counter() - started)
    return times[WARMUP_STEPS:], skipped, step.optimizer.costs(last=steps)


def _random_batches(config: RunConfig) -> list[Batch]:
    generator = torch.Generator().manual_seed(config.train.seed)
    train, model = config.train, config.model
    shape = (train.batch_size, model.seq_len + 1)
    tokens = torch.randint(model.vocab_size, shape, generator=generator)
    starts = torch.rand(train.batch_size, model.seq_len, generator=generator) < 1.0 / _DOCUMENT_TOKENS
    size = train.effective_micro_batch_size
    return [
        Batch(
            tokens=part[:, :-1].contiguous(),
            targets=part[:, 1:].contiguous(),
            document_starts=begin if config.data.isolates_documents else None,
        )
        for part, begin in zip(torch.split(tokens, size), torch.split(starts, size), strict=True)
    ]


def _peak_rss_gib() -> float | None:
    """Peak resident memory of this process; None on a platform without `resource`."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return gib(peak * (1 if sys.platform == "darwin" else 1024))
