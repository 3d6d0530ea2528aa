"""The parameters of a model as several processes divide them, and which of them keeps and updates what.

As `colakit.optim.pieces` and `colakit.optim.sharded_muon` do it while training: closed formulas over a config.
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
class Matrix:
    """A matrix that Muon updates: within a parameter of so many rows, from row `start` on."""

    shape: tuple[int, int]
    start: int
    rows: int

    def held(self, n: int) -> Iterator[tuple[int, int]]:
        """Each of `n` processes that has some of it, and how many entries that is."""
        size, end = -(-self.rows // n), self.start + self.shape[0]
        for rank in range(self.start // size, (end - 1) // size + 1):
            yield rank, (min(end, (rank + 1) * size) - max(self.start, rank * size)) * self.shape[1]


def matrices(config: RunConfig) -> list[Matrix]:
    return [
        Matrix((m, t.row), start, t.shape[0])
        for t in stored(config.model)
        if _is_muons(t, config)
        for m, start in zip(t.matrix_rows, itertools.accumulate(t.matrix_rows, initial=0), strict=False)
    ]


def state_bytes(config: RunConfig, strategy: Strategy, n: int) -> tuple[int, ...]:
    """What each of `n` processes keeps of the optimizer's state, by rank: momenta, without AdamW's counts of steps."""
    return tuple(
        FLOAT32_BYTES * (share.entries(muon=True) + _ADAMW_MOMENTS * share.entries(muon=False))
        for share in shares_of(config, strategy, n)
    )


@dataclass(frozen=True)
class Share:
    """The rows of each parameter of `stored`, by its index, that a process updates."""

    rows: Mapping[int, int]
    tensors: Sequence[Stored]
    muons: frozenset[int]

    def entries(self, *, muon: bool) -> int:
        """Those that Muon updates, or AdamW."""
        return sum(rows * self.tensors[i].row for i, rows in self.rows.items() if (i in self.muons) == muon)


def shares_of(config: RunConfig, strategy: Strategy, n: int) -> list[Share]:
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
    return [Share(own, tensors, muons) for own in rows]


def _rows_by_owner(config: RunConfig, tensors: Sequence[Stored], muons: Sequence[int], n: int) -> list[dict[int, int]]:
    """As `ByOwner` divides them: Muon's parameters whole; AdamW's, those with weight decay first, between rows."""
    decayed, plain = (
        [i for i, t in enumerate(tensors) if group_of(t.role, muon=bool(muons)) == group]
        for group in ("adamw_decayed", "adamw_plain")
    )
    found: list[dict[int, int]] = [{} for _ in range(n)]
    held = [0] * n
    owners = balanced([newton_schulz_of(config, tensors[i].matrices) for i in muons], n)
    for i, owner in zip(muons, owners, strict=True):
        found[owner][i] = tensors[i].shape[0]
        held[owner] += FLOAT32_BYTES * tensors[i].size
    adamw = [*decayed, *plain]
    row_bytes = [_ADAMW_MOMENTS * FLOAT32_BYTES * tensors[i].row for i in adamw]
    for own, cuts in zip(found, poured([tensors[i].shape[0] for i in adamw], row_bytes, held), strict=True):
        own.update((adamw[cut.index], cut.stop - cut.start) for cut in cuts)
    return found


def owners_of(config: RunConfig, n: int) -> list[set[int]]:
    """zero1: of each parameter of `stored` the processes that update some of it."""
    shares = shares_of(config, "zero1", n)
    found: list[set[int]] = [set() for _ in shares[0].tensors]
    for rank, share in enumerate(shares):
        for i in share.rows:
            found[i].add(rank)
    return found


def matrix_owners(config: RunConfig, n: int) -> list[int]:
    """fsdp2: of each of Muon's matrices, as `ShardedMuon` has it."""
    return balanced([newton_schulz_of(config, [m.shape]) for m in matrices(config)], n)


def _is_muons(t: Stored, config: RunConfig) -> bool:
    return group_of(t.role, muon=config.optim.optimizer == "muon") == "muon"


def newton_schulz_of(config: RunConfig, shapes: Iterable[tuple[int, int]]) -> int:
    """Operations of these matrices' Newton–Schulz, each in the form that the device takes."""
    steps, a = config.optim.ns_steps, config.optim.ns_coefficients[0]
    textbook = precision_of(config).device == "cuda"
    return sum(
        newton_schulz_flops(short, long, steps, a, "textbook" if textbook else cheaper_form(short, long, steps, a))
        for short, long in map(sorted, shapes)
    )
