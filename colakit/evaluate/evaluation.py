"""An evaluation from beginning to end: as many windows at once as fit, the scores of each source and of all."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from colakit.analysis.hardware import Precision
from colakit.analysis.memory import evaluation_bytes
from colakit.build import Machine
from colakit.config.schema import ModelConfig
from colakit.errors import CheckpointError
from colakit.evaluate.scores import Progress, Scorer, Tally, score_windows
from colakit.evaluate.text import Text
from colakit.host import free_memory, keep_freed_memory
from colakit.records.evaluation import EvaluationRecord

_ENOUGH_TOKENS = {"cuda": 2**15, "cpu": 2**12}
"""At once: more make neither faster, and a CPU slower, whose caches they leave."""
_SHARE_OF_FREE = {"cuda": 0.9, "cpu": 0.5}
"""Of the free memory; a CPU's is not this process's alone, and what it is short of ends processes."""


@dataclass(frozen=True)
class Subject:
    """The model that is evaluated, as far as a record tells of it."""

    place: str
    preset: str | None
    step: int | None
    tokenizer: str
    machine: Machine
    scorer: Scorer


def evaluate_text(
    of: Subject,
    text: Text,
    *,
    seq_len: int,
    stride: int | None,
    max_tokens: int | None,
    batch_size: int,
    watch: Progress = lambda _done, _total: None,
) -> EvaluationRecord:
    """Score `text`, at most `max_tokens` targets of it, in windows of `seq_len` tokens.

    `batch_size` of them at once, or fewer where a GPU is full.
    """
    if of.machine.device.type == "cpu":
        keep_freed_memory()
    started = time.perf_counter()
    windows = text.windows(seq_len, stride, max_tokens)
    tally = Tally(windows.n_documents, text.tokenizer.token_bytes)
    batch_size = score_windows(
        of.scorer,
        windows,
        tally,
        batch_size=min(batch_size, len(windows)),
        isolate_eot=text.isolate_eot if stride is None else None,
        watch=watch,
    )
    seconds = time.perf_counter() - started
    if not np.isfinite(tally.nll).all():
        raise CheckpointError(f"{of.place}: the model's outputs are not finite. Give a checkpoint from before that.")
    bounds = np.cumsum([0, *(len(source.store) for source in text.sources)]).tolist()
    parts = {s.name: slice(a, b) for s, a, b in zip(text.sources, bounds[:-1], bounds[1:], strict=True)}
    scores = tally.scores()
    return EvaluationRecord(
        model=of.place,
        preset=of.preset,
        step=of.step,
        tokenizer=of.tokenizer,
        data=text.label,
        is_held_out=text.is_held_out,
        seq_len=seq_len,
        stride=stride,
        device=str(of.machine),
        batch_size=batch_size,
        scores=scores,
        sources={name: tally.scores(part) for name, part in parts.items() if tally.tokens[part].any()}
        if len(parts) > 1
        else {},
        eval_s=seconds,
        tokens_per_s=scores.tokens / seconds,
    )


def fitting_batch(model: ModelConfig, machine: Machine, seq_len: int) -> int:
    """How many windows of `seq_len` tokens fit in the memory that is free, up to what is of use; at least one."""
    device = machine.device.type
    free = torch.cuda.mem_get_info(machine.device)[0] if device == "cuda" else free_memory()
    precision = Precision(
        "cuda" if device == "cuda" else "cpu", "float32" if machine.dtype == torch.float32 else "bfloat16"
    )
    room = _SHARE_OF_FREE[device] * free
    size = max(1, _ENOUGH_TOKENS[device] // seq_len)
    while size > 1 and evaluation_bytes(model, precision, size * seq_len) > room:
        size //= 2
    return size
