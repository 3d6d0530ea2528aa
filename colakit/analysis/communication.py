"""What the processes of a run send each other in an optimizer step, what each keeps of the optimizer's state, and how
long a step takes with them: closed formulas over a config, nothing is run.

Bytes and calls are those that `colakit.parallel.traffic` counts while training. Times are a model: no step of several
GPUs has been held against it. Of P parameters, N processes send in a step, each:

* ddp: 2·(N−1)/N·4P, gradients summed (all-reduce);
* zero1: (N−1)/N·4P, each gradient summed where it is used (reduce), and as much for the new weights (broadcast);
* fsdp2: in each micro-batch (N−1)/N·4·(2·B + R) to gather weights, and (N−1)/N·4·(B + R) to sum gradients. B are the
  entries of the blocks, which are gathered again for the backward pass; R those of embedding, final norm and head, that
  stay. In both each tensor has the rows that FSDP2 pads it to, N·⌈rows/N⌉. Muon's matrices go to their owners and back
  besides: in float32, and in the type that Newton–Schulz ends in.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from colakit.analysis.hardware import FLOAT32_BYTES, precision_of
from colakit.analysis.inventory import Role, group_of, parameters
from colakit.analysis.layers import Layer, Weight, block_layers, head_layer
from colakit.analysis.newton_schulz import cheaper_form, newton_schulz_flops
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
    shared = itertools.groupby(
        block_layers(model), lambda layer: "qkv" if layer.name in ("q", "k", "v") else layer.name
    )
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
    owners = _owners(config, n)
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
    """A matrix that Muon updates: within a parameter of so many rows, from row `start` on."""

    shape: tuple[int, int]
    start: int
    rows: int

    def held(self, n: int) -> Iterator[tuple[int, int]]:
        """Each of `n` processes that has some of it, and how many entries that is."""
        size, end = -(-self.rows // n), self.start + self.shape[0]
        for rank in range(self.start // size, (end - 1) // size + 1):
            yield rank, (min(end, (rank + 1) * size) - max(self.start, rank * size)) * self.shape[1]


def _matrices(config: RunConfig) -> list[_Matrix]:
    return [
        _Matrix((m, t.row), start, t.shape[0])
        for t in stored(config.model)
        if _is_muons(t, config)
        for m, start in zip(t.matrix_rows, itertools.accumulate(t.matrix_rows, initial=0), strict=False)
    ]


# Who updates what.


def state_bytes(config: RunConfig, strategy: Strategy, n: int) -> tuple[int, ...]:
    """What each of `n` processes keeps of the optimizer's state, by rank: momenta, without AdamW's counts of steps."""
    return tuple(
        FLOAT32_BYTES * (share.entries(muon=True) + _ADAMW_MOMENTS * share.entries(muon=False))
        for share in _shares(config, strategy, n)
    )


@dataclass(frozen=True)
class _Share:
    """The rows of each parameter of `stored`, by its index, that a process updates."""

    rows: Mapping[int, int]
    tensors: Sequence[Stored]
    muons: frozenset[int]

    def entries(self, *, muon: bool) -> int:
        """Those that Muon updates, or AdamW."""
        return sum(rows * self.tensors[i].row for i, rows in self.rows.items() if (i in self.muons) == muon)


def _shares(config: RunConfig, strategy: Strategy, n: int) -> list[_Share]:
    tensors = stored(config.model)
    muons = frozenset(i for i, t in enumerate(tensors) if _is_muons(t, config))
    match strategy:
        case "ddp":
            rows = [{i: t.shape[0] for i, t in enumerate(tensors)}] * n
        case "zero1":
            rows = _rows_by_owner(config, tensors, sorted(muons), n)
        case "fsdp2":
            bounds = [[chunk(t.shape[0], n, rank) for t in tensors] for rank in range(n)]
            rows = [{i: stop - start for i, (start, stop) in enumerate(own) if stop > start} for own in bounds]
    return [_Share(own, tensors, muons) for own in rows]


def _rows_by_owner(config: RunConfig, tensors: Sequence[Stored], muons: Sequence[int], n: int) -> list[dict[int, int]]:
    """As `ByOwner` divides them: Muon's parameters whole; AdamW's, those with weight decay first, between rows."""
    decayed, plain = (
        [i for i, t in enumerate(tensors) if group_of(t.role, muon=bool(muons)) == group]
        for group in ("adamw_decayed", "adamw_plain")
    )
    found: list[dict[int, int]] = [{} for _ in range(n)]
    held = [0] * n
    owners = balanced([_newton_schulz(config, tensors[i].matrices) for i in muons], n)
    for i, owner in zip(muons, owners, strict=True):
        found[owner][i] = tensors[i].shape[0]
        held[owner] += FLOAT32_BYTES * tensors[i].size
    adamw = [*decayed, *plain]
    row_bytes = [_ADAMW_MOMENTS * FLOAT32_BYTES * tensors[i].row for i in adamw]
    for own, cuts in zip(found, poured([tensors[i].shape[0] for i in adamw], row_bytes, held), strict=True):
        own.update((adamw[cut.index], cut.stop - cut.start) for cut in cuts)
    return found


def _owners(config: RunConfig, n: int) -> list[set[int]]:
    """zero1: of each parameter of `stored` the processes that update some of it."""
    shares = _shares(config, "zero1", n)
    found: list[set[int]] = [set() for _ in shares[0].tensors]
    for rank, share in enumerate(shares):
        for i in share.rows:
            found[i].add(rank)
    return found


def _matrix_owners(config: RunConfig, n: int) -> list[int]:
    """fsdp2: of each of Muon's matrices, as `ShardedMuon` has it."""
    return balanced([_newton_schulz(config, [m.shape]) for m in _matrices(config)], n)


def _is_muons(t: Stored, config: RunConfig) -> bool:
    return group_of(t.role, muon=config.optim.optimizer == "muon") == "muon"


def _newton_schulz(config: RunConfig, shapes: Iterable[tuple[int, int]]) -> int:
    """Operations of these matrices' Newton–Schulz, each in the form that the device takes."""
    steps, a = config.optim.ns_steps, config.optim.ns_coefficients[0]
    textbook = precision_of(config).device == "cuda"
    return sum(
        newton_schulz_flops(short, long, steps, a, "textbook" if textbook else cheaper_form(short, long, steps, a))
        for short, long in map(sorted, shapes)
    )


# How long a step takes.


@dataclass(frozen=True)
class Link:
    """A way from one GPU to another."""

    gb_per_s: float
    """In one direction, 10⁹ bytes."""
    hop_us: float
    """Until a message that is as short as can be has gone from one to the next."""


@dataclass(frozen=True)
class Network:
    """GPUs in nodes."""

    node_size: int
    within: Link
    between: Link
    """Of each GPU: all of a node have one of their own."""
    call_us: float
    """What a collective takes, however few there are and however little it sends."""


H100_NODES = Network(8, Link(450.0, 1.9), Link(50.0, 4.0), 14.0)
"""Eight H100 or H200 a node. NVLink 4 has 900 GB/s, half in each direction; each has an adapter of 400 Gb/s InfiniBand.

Hops and calls are those of NCCL's own model of its rings, protocol LL128 (``src/graph/tuning.cc``).
"""


def pcie_cards(gb_per_s: float) -> Network:
    """A few cards in one computer; hops and calls from where `H100_NODES` has them."""
    link = Link(gb_per_s, 2.5)
    return Network(8, link, link, 14.0)


@dataclass(frozen=True)
class Compute:
    """A step of one process alone, milliseconds."""

    forward_ms: float
    backward_ms: float
    muon_ms: float
    adamw_ms: float
    other_ms: float = 0.0
    """What is none of these, as the wait for the next kernel."""

    @property
    def step_ms(self) -> float:
        """All of it."""
        return math.fsum((self.forward_ms, self.backward_ms, self.muon_ms, self.adamw_ms, self.other_ms))


@dataclass(frozen=True)
class StepTime:
    """A step of several processes, each with a batch as large as the one of `alone_ms`."""

    alone_ms: float
    step_ms: float
    communication_ms: float
    """Of all collectives, hidden or not."""
    waiting_ms: float
    """What of it all wait for."""

    @property
    def efficiency_frac(self) -> float:
        """Tokens per second over those of as many processes alone; above 1 where sharing the update saves more."""
        return self.alone_ms / self.step_ms


def step_time(
    config: RunConfig, strategy: Strategy, n: int, compute: Compute, network: Network, micro_batches: int = 1
) -> StepTime:
    """A step alone, less what of the update is left to others, and more what of the collectives nothing is behind.

    ddp and zero1 sum gradients behind the last micro-batch's backward pass alone, fsdp2 gathers and sums behind all
    passes. What is hidden is taken to slow nothing; Muon's time to go with its operations, AdamW's with its entries.
    """
    took: dict[Pass | None, float] = {"forward": 0.0, "backward": 0.0, None: 0.0}
    for flow in flows(config, strategy, n, micro_batches):
        took[flow.behind] += _flow_ms(flow, n, network)
    window = compute.backward_ms / (1 if strategy == "fsdp2" else micro_batches)
    hidden = min(took["forward"], compute.forward_ms) + min(took["backward"], window)
    communication = math.fsum(took.values())
    muon, adamw = _longest_shares(config, strategy, n)
    spared = (1.0 - muon) * compute.muon_ms + (1.0 - adamw) * compute.adamw_ms
    waiting = communication - hidden
    return StepTime(compute.step_ms, compute.step_ms - spared + waiting, communication, waiting)


def _flow_ms(flow: Flow, n: int, network: Network) -> float:
    """Bytes over bandwidth, calls, and hops: as NCCL has them, in a ring, and those of an all-reduce in a tree.

    Reduces and broadcasts, each of its own root, follow each other round the ring: their hops count once. Where a ring
    leaves a node it has all adapters of the node; in an all-to-all each GPU has its own.
    """
    nodes = -(-n // network.node_size)
    within, between = network.within, network.between
    ring_us = (n - nodes) * within.hop_us + (nodes - 1) * between.hop_us
    tree_us = 2 * ((-(-n // nodes) - 1) * within.hop_us + math.ceil(math.log2(nodes)) * between.hop_us)
    rounds = min(1, flow.calls) if flow.kind in ("reduce", "broadcast") else flow.calls
    latency_us = flow.calls * network.call_us + rounds * (tree_us if flow.kind == "all-reduce" else ring_us)
    gb_per_s = within.gb_per_s
    if nodes > 1:
        adapters = 1 if flow.kind == "all-to-all" else network.node_size
        gb_per_s = min(gb_per_s, adapters * between.gb_per_s)
    return flow.busiest_bytes / (gb_per_s * 1e6) + latency_us / 1e3


def _longest_shares(config: RunConfig, strategy: Strategy, n: int) -> tuple[float, float]:
    """What share of Muon's operations, and of AdamW's entries, falls to the process that has most of them."""
    if strategy == "ddp":
        return 1.0, 1.0
    shares = _shares(config, strategy, n)
    tensors, muons = shares[0].tensors, shares[0].muons
    if strategy == "fsdp2":
        costs = [_newton_schulz(config, [m.shape]) for m in _matrices(config)]
        by_rank = [0] * n
        for cost, owner in zip(costs, _matrix_owners(config, n), strict=True):
            by_rank[owner] += cost
    else:
        by_rank = [
            sum(_newton_schulz(config, tensors[i].matrices) for i in muons & share.rows.keys()) for share in shares
        ]
    adamw = [share.entries(muon=False) for share in shares]
    all_adamw = sum(t.size for i, t in enumerate(tensors) if i not in muons)
    return max(by_rank) / max(1, sum(by_rank)), max(adamw) / all_adamw
