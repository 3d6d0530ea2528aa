"""What the processes of a run send each other in an optimizer step, what each keeps of the optimizer's state, and what
a step then takes: closed formulas over a config, nothing is run.

Bytes are counted as `colakit.parallel.traffic` counts them while training, and come to the same; times are a model, with
assumptions of its own, that nothing here has measured. P are the parameters, N the processes; weights and gradients are
float32. Each process sends

* ddp: 2·(N−1)/N·4P, the gradients summed (all-reduce);
* zero1: (N−1)/N·4P, each gradient summed where it is used (reduce), and as much for the new weights (broadcast);
* fsdp2: in each micro-batch (N−1)/N·4·(2·B + R) to gather weights and (N−1)/N·4·(B + R) to sum gradients. B are the
  entries of the blocks, which are gathered again for the backward pass; R those of embedding, final norm and head, which
  stay gathered in between. Both count each tensor's rows as FSDP2 pads them, to N·⌈rows/N⌉. Muon's matrices travel to
  their owners and back besides, in float32 and in the type that Newton–Schulz ends in.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from colakit.analysis.hardware import FLOAT32_BYTES, precision_of
from colakit.analysis.inventory import Role, group_of, parameters
from colakit.analysis.layers import Layer, Weight, block_layers, head_layer
from colakit.analysis.newton_schulz import Form, cheaper_form, newton_schulz_flops
from colakit.analysis.sharding import balanced, chunk, poured
from colakit.config.schema import ModelConfig, RunConfig

Strategy = Literal["ddp", "zero1", "fsdp2"]
Kind = Literal["all-reduce", "reduce", "broadcast", "all-gather", "reduce-scatter", "all-to-all"]
Pass = Literal["forward", "backward"]

_BUCKET_BYTES = 25 * 2**20
_FIRST_BUCKET_BYTES = 2**20
"""DDP's: small, so that the first sum begins early."""

_ADAMW_MOMENTS = 2
"""Entries of state for each parameter; Muon has one."""

_WIDE = frozenset({"weight", "a", "a_p", "a_np"})
"""Weights by which several projections of one input are one product, and one tensor."""


@dataclass(frozen=True)
class Stored:
    """A parameter as a model holds it, and as it is divided: projections that read one input are one tensor."""

    role: Role
    shape: tuple[int, ...]
    matrix_rows: tuple[int, ...]
    """The rows of each of the matrices that an optimizer sees in it, from the top; none in a vector."""
    in_block: bool

    @property
    def size(self) -> int:
        """Entries."""
        return math.prod(self.shape)

    @property
    def row(self) -> int:
        """Entries of a row."""
        return math.prod(self.shape[1:])

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(rows, columns) of each matrix in it."""
        return [(rows, self.shape[1]) for rows in self.matrix_rows]

    def padded(self, n: int) -> int:
        """Entries, once FSDP2 has given each of `n` processes as many rows as the first has."""
        return n * -(-self.shape[0] // n) * self.row


def stored(model: ModelConfig) -> tuple[Stored, ...]:
    """Every parameter once, matrices in the order in which optimizers divide them; the embedding is the last."""
    *inside, final = (p for p in parameters(model) if p.component in ("norms", "gates"))
    shared = itertools.groupby(block_layers(model), lambda layer: "qkv" if layer.name in ("q", "k", "v") else layer.name)
    block = [tensor for _, layers in shared for tensor in _joined(layers, "matrix", in_block=True)]
    return (
        *(block * model.n_layers),
        *(Stored(p.role, p.shape, (), True) for p in inside),
        Stored(final.role, final.shape, (), False),
        *(() if model.tie_embeddings else _joined([head_layer(model)], "head", in_block=False)),
        Stored("embedding", (model.vocab_size, model.d_model), (), False),
    )


def _joined(layers: Iterable[Layer], role: Role, *, in_block: bool) -> Iterator[Stored]:
    """The tensors of layers that read the same input."""
    weights = [w for layer in layers for w in layer.weights]
    if wide := [w for w in weights if w.name in _WIDE]:
        rows = tuple(m for w in wide for m in _matrix_rows(w))
        yield Stored(role, (sum(rows), wide[0].shape[1]), rows, in_block)
    for w in weights:
        if w.name not in _WIDE:
            yield Stored(role if w.matrices else "bias", w.shape, _matrix_rows(w), in_block)


def _matrix_rows(w: Weight) -> tuple[int, ...]:
    return (w.shape[0] // w.matrices,) * w.matrices if w.matrices else ()


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
    """The pass that goes on meanwhile; None: all wait."""


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


def sent_bytes(config: RunConfig, strategy: Strategy, n: int, micro_batches: int = 1, kind: Kind | None = None) -> float:
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
    owners = _owners(config, n)
    coming = [owners[i] for i in (*reversed(range(len(owners) - 1)), len(owners) - 1)]
    sizes = [t.size for t in _as_gradients_come(config.model)]
    *early, last = _buckets(sizes, _BUCKET_BYTES)
    rest = iter(coming)
    *reduces, last_reduces = (
        len(set().union(*itertools.islice(rest, len(bucket)))) for bucket in (*early, last)
    )
    total = sum(sizes)
    return (
        _alike("reduce", total - sum(last), n, sum(reduces), "backward"),
        _alike("reduce", sum(last), n, last_reduces, None),
        _alike("broadcast", total, n, len(set().union(*owners)), None),
    )


def _fsdp2(config: RunConfig, n: int, micro_batches: int) -> tuple[Flow, ...]:
    """A unit is one collective. The root's are not hidden: nothing comes before the first, nor behind the last."""
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
    matrices = _matrices(config)
    if not matrices:
        return
    given, taken = [0] * n, [0] * n
    for m, owner in zip(matrices, _matrix_owners(config, n), strict=True):
        for rank, entries in m.held(n):
            if rank != owner:
                given[rank] += entries
                taken[owner] += entries
    for itemsize in (FLOAT32_BYTES, 2 if precision_of(config).device == "cuda" else FLOAT32_BYTES):
        yield Flow("all-to-all", itemsize * sum(given) / n, itemsize * max(*given, *taken), 1, None)


@dataclass(frozen=True)
class _Matrix:
    """A matrix within a parameter: rows `start` … `start + shape[0]` − 1 of `of`."""

    of: Stored
    start: int
    shape: tuple[int, int]

    def held(self, n: int) -> Iterator[tuple[int, int]]:
        """Each of `n` processes that has some of its rows, and how many entries that is."""
        size = -(-self.of.shape[0] // n)
        end = self.start + self.shape[0]
        for rank in range(self.start // size, (end - 1) // size + 1):
            yield rank, (min(end, (rank + 1) * size) - max(self.start, rank * size)) * self.shape[1]


def _matrices(config: RunConfig) -> list[_Matrix]:
    """Those that Muon updates."""
    return [
        _Matrix(t, start, shape)
        for t in _parts(config)[0]
        for start, shape in zip(itertools.accumulate(t.matrix_rows, initial=0), t.matrices, strict=False)
    ]


def _parts(config: RunConfig) -> tuple[list[Stored], list[Stored]]:
    """What Muon updates, and what AdamW does: those with weight decay first."""
    by_group: dict[str, list[Stored]] = {"muon": [], "adamw_decayed": [], "adamw_plain": []}
    for t in stored(config.model):
        by_group[group_of(t.role, muon=config.optim.optimizer == "muon")].append(t)
    return by_group["muon"], by_group["adamw_decayed"] + by_group["adamw_plain"]


# Who owns what.


def _flops(config: RunConfig, shape: Sequence[int], *, cheaper: bool) -> int:
    """Newton–Schulz of one matrix: in the cheaper form, or in that which the device takes, as `flops` has it."""
    (short, long), steps, a = sorted(shape), config.optim.ns_steps, config.optim.ns_coefficients[0]
    textbook = precision_of(config).device == "cuda" and not cheaper
    form: Form = "textbook" if textbook else cheaper_form(short, long, steps, a)
    return newton_schulz_flops(short, long, steps, a, form)


def _matrix_owners(config: RunConfig, n: int) -> list[int]:
    """fsdp2: of each matrix, as `ShardedMuon` has it."""
    return balanced([_flops(config, m.shape, cheaper=False) for m in _matrices(config)], n)


def _muon_owners(config: RunConfig, n: int) -> list[int]:
    """zero1: of each whole parameter of Muon's, as `ByOwner` has it."""
    muon, _ = _parts(config)
    return balanced([sum(_flops(config, m, cheaper=True) for m in t.matrices) for t in muon], n)


def _adamw_rows(config: RunConfig, n: int) -> list[list[tuple[Stored, int]]]:
    """zero1: for each process the parameters of AdamW's of which it updates rows, and how many, as `ByOwner` has it."""
    muon, adamw = _parts(config)
    held = [0] * n
    for t, owner in zip(muon, _muon_owners(config, n), strict=True):
        held[owner] += FLOAT32_BYTES * t.size
    cuts = poured([t.shape[0] for t in adamw], [_ADAMW_MOMENTS * FLOAT32_BYTES * t.row for t in adamw], held)
    return [[(adamw[c.index], c.stop - c.start) for c in own] for own in cuts]


def _owners(config: RunConfig, n: int) -> list[set[int]]:
    """zero1: of each parameter of `stored` the processes that update some of it."""
    muon, adamw = _parts(config)
    found: dict[int, set[int]] = {id(t): set() for t in (*muon, *adamw)}
    raise NotImplementedError
