"""What the processes of a run send each other in an optimizer step: closed formulas over a config, nothing is run.

Bytes and calls are those that `colakit.parallel.traffic` counts while training. Of P parameters, N processes send in a
step, each:

* ddp: 2·(N−1)/N·4P, gradients summed (all-reduce);
* zero1: (N−1)/N·4P, each gradient summed where it is used (reduce), and as much for the new weights (broadcast);
* fsdp2: in each micro-batch (N−1)/N·4·(2·B + R) to gather weights, and (N−1)/N·4·(B + R) to sum gradients. B are the
  entries of the blocks, which are gathered again for the backward pass; R those of embedding, final norm and head, that
  stay. In both each tensor has the rows that FSDP2 pads it to, N·⌈rows/N⌉. Muon's matrices go to their owners and back
  besides: in float32, and in the type that Newton–Schulz ends in.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from colakit.analysis.hardware import FLOAT32_BYTES, precision_of
from colakit.analysis.shares import Stored, Strategy, matrices, matrix_owners, owners_of, stored
from colakit.config.schema import ModelConfig, RunConfig

Kind = Literal["all-reduce", "reduce", "broadcast", "all-gather", "reduce-scatter", "all-to-all"]
Pass = Literal["forward", "backward"]

_BUCKET_BYTES = 25 * 2**20
_FIRST_BUCKET_BYTES = 2**20
"""DDP's: small, so that the first sum begins early."""


@dataclass(frozen=True)
class Flow:
    """Collectives of one kind in a step of one process."""

    kind: Kind
    sent_bytes: float
    """What a process sends; where they differ, on average."""
    busiest_bytes: float
    """The most that one of them sends or receives."""
    calls: int
    behind: Pass | None
    """The pass that goes on meanwhile; None: all wait for them."""


def flows(config: RunConfig, strategy: Strategy, n: int, micro_batches: int = 1) -> tuple[Flow, ...]:
    """What each of `n` processes sends in a step of so many micro-batches each; nothing where it is alone.

    Calls depend on where buckets end, for which gradients are taken to come in the order opposite to the forward pass.
    """
    if n == 1:
        return ()
    match strategy:
        case "ddp":
            return _ddp(config, n)
        case "zero1":
            return _zero1(config, n)
        case "fsdp2":
            return (*_fsdp2(config, n, micro_batches), *_exchange(config, n))


def sent_bytes(
    config: RunConfig, strategy: Strategy, n: int, micro_batches: int = 1, kind: Kind | None = None
) -> float:
    """What a process sends in a step on average, bytes; unless `kind` is given, in all."""
    found = flows(config, strategy, n, micro_batches)
    return math.fsum(flow.sent_bytes for flow in found if kind in (None, flow.kind))


def _alike(kind: Kind, entries: int, n: int, calls: int, behind: Pass | None, times: int = 1) -> Flow:
    """Of float32 that goes `times` round the ring."""
    sent = times * FLOAT32_BYTES * entries * (n - 1) / n
    return Flow(kind, sent, sent, calls, behind)


def _ddp(config: RunConfig, n: int) -> tuple[Flow, ...]:
    *early, last = _buckets([t.size for t in _as_gradients_come(config.model)], _FIRST_BUCKET_BYTES)
    hidden, waited_for = sum(sum(bucket) for bucket in early), sum(last)
    return (
        _alike("all-reduce", hidden, n, len(early), "backward", times=2),
        _alike("all-reduce", waited_for, n, 1, None, times=2),
    )


def _as_gradients_come(model: ModelConfig) -> tuple[Stored, ...]:
    *others, embedding = stored(model)
    return (*reversed(others), embedding)


def _buckets(sizes: Iterable[int], first: int) -> list[list[int]]:
    """Entries of float32 tensors put together until they reach a bucket's size; the last bucket is what is left.

    Nothing of the backward pass is left behind the last one, in which the embedding's gradient is.
    """
    found: list[list[int]] = [[]]
    limit = first
    for size in sizes:
        if sum(found[-1]) * FLOAT32_BYTES >= limit:
            found.append([])
            limit = _BUCKET_BYTES
        found[-1].append(size)
    return found


def _zero1(config: RunConfig, n: int) -> tuple[Flow, ...]:
    owners = owners_of(config, n)
    others, embedding = range(len(owners) - 1), len(owners) - 1
    coming = iter([owners[i] for i in (*reversed(others), embedding)])
    buckets = _buckets([t.size for t in _as_gradients_come(config.model)], _BUCKET_BYTES)
    reduces = [len(set().union(*itertools.islice(coming, len(bucket)))) for bucket in buckets]
    last = sum(buckets[-1])
    hidden = sum(map(sum, buckets[:-1]))
    return (
        _alike("reduce", hidden, n, sum(reduces[:-1]), "backward"),
        _alike("reduce", last, n, reduces[-1], None),
        _alike("broadcast", hidden + last, n, len(set().union(*owners)), None),
    )


def _fsdp2(config: RunConfig, n: int, micro_batches: int) -> tuple[Flow, ...]:
    """A block is one collective. The root's are waited for: nothing comes before the first, nor behind the last."""
    tensors = stored(config.model)
    block, root = (sum(t.padded(n) for t in tensors if t.in_block == inside) for inside in (True, False))
    m, layers = micro_batches, config.model.n_layers
    return (
        _alike("all-gather", m * root, n, m, None),
        _alike("all-gather", m * block, n, m * layers, "forward"),
        _alike("all-gather", m * block, n, m * layers, "backward"),
        _alike("reduce-scatter", m * block, n, m * layers, "backward"),
        _alike("reduce-scatter", m * root, n, m, None),
    )


def _exchange(config: RunConfig, n: int) -> Iterator[Flow]:
    """Muon's: rows to the owner of their matrix, and updates back, but for what is there already."""
    moved = matrices(config)
    if not moved:
        return
    given, taken = [0] * n, [0] * n
    for m, owner in zip(moved, matrix_owners(config, n), strict=True):
        for rank, entries in m.held(n):
            if rank != owner:
                given[rank] += entries
                taken[owner] += entries
    for itemsize in (FLOAT32_BYTES, 2 if precision_of(config).device == "cuda" else FLOAT32_BYTES):
        yield Flow("all-to-all", itemsize * sum(given) / n, itemsize * max(*given, *taken), 1, None)
