"""Held-out metrics: sums over all real targets first, divided once. Never an average of batch averages."""

import gzip
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from colakit.build import Machine
from colakit.data.loader import Batch
from colakit.loss import IGNORE, loss_sums
from colakit.model.documents import Documents
from colakit.model.lm import LM
from colakit.records.run import EvalRecord
from colakit.units import NATS_PER_BIT


@torch.no_grad()
def evaluate(
    model: LM, batches: Iterable[Batch], machine: Machine, token_bytes: Sequence[bytes] | None, *, step: int
) -> EvalRecord:
    """Loss, accuracy and bits per byte of `model` over `batches`, without dropout; the model's mode is put back.

    `token_bytes` are the bytes each token stands for; without them bits per byte are None. End-of-text tokens stand for
    no bytes, but what predicting them costs is counted.
    """
    started = time.perf_counter()
    nll = torch.zeros((), dtype=torch.float64, device=machine.device)
    correct = torch.zeros((), dtype=torch.int64, device=machine.device)
    tokens = 0
    text_bytes = 0
    lengths = byte_lengths(token_bytes)
    with evaluation_mode(model):
        for batch in batches:
            starts = batch.document_starts
            documents = None if starts is None else Documents.of(starts).to(machine.device)
            with machine.autocast():
                hidden = model.hidden(batch.tokens.to(machine.device), documents)
                sums = loss_sums(*model.logit_factors(hidden), batch.targets.to(machine.device))
            nll += sums.nll
            correct += sums.correct
            tokens += int((batch.targets != IGNORE).sum())
            text_bytes += count_bytes(batch.targets, lengths) if lengths is not None else 0
    val_loss = nll.item() / tokens
    return EvalRecord(
        step=step,
        val_loss=val_loss,
        perplexity=math.exp(min(val_loss, 700.0)),  # beyond e^709 a float overflows
        bits_per_byte=nll.item() / NATS_PER_BIT / text_bytes if text_bytes else None,
        accuracy=correct.item() / tokens,
        tokens=tokens,
        text_bytes=text_bytes if lengths is not None else None,
        eval_s=time.perf_counter() - started,
    )


def byte_lengths(token_bytes: Sequence[bytes] | None) -> Tensor | None:
    """How many bytes of text each token stands for, [V] int64; None where that is not known."""
    return None if token_bytes is None else torch.tensor([len(b) for b in token_bytes])


def count_bytes(targets: Tensor, lengths: Tensor) -> int:
    """The bytes of text that the real targets [B, T], on the host, stand for."""
    return int(lengths[targets[targets != IGNORE]].sum())


def gzip_bits_per_byte(batches: Iterable[Batch], token_bytes: Sequence[bytes] | None) -> float | None:
    """What ``gzip -9`` reaches on exactly the text that `evaluate` scores; None where bytes are not known."""
    if token_bytes is None:
        return None
    ids = (batch.targets[batch.targets != IGNORE].tolist() for batch in batches)
    text = b"".join(token_bytes[i] for batch_ids in ids for i in batch_ids)
    return 8 * len(gzip.compress(text, compresslevel=9, mtime=0)) / len(text) if text else None


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout inside; the mode it had, afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
