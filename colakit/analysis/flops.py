"""Floating point operations of a forward pass, in closed form: the paper's Table 6, and any configured model.

A multiply and an add count as two. Only matrix products are counted, as PyTorch's own counter does: biases, norms,
activations, rotary positions, the softmax and the embedding's lookup are not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from colakit.analysis.layers import LayerName, block_layers, head_layer
from colakit.config.schema import ModelConfig
from colakit.paper.claims import TABLE_6


@dataclass(frozen=True)
class Sizes:
    """The letters of Table 6: n tokens, d model width, r rank, d_ff feed-forward width."""

    n: int
    d: int
    r: int
    d_ff: int


@dataclass(frozen=True)
class Count:
    """FLOPs as a formula in Table 6's letters, and evaluated."""

    formula: str
    flops: int


@dataclass(frozen=True)
class Table6Row:
    """One component of Table 6. Original counts the forward pass in both conventions."""

    component: str
    original: Count
    cola_printed: Count
    """As the paper prints it: see `TABLE_6` for what it counts besides the forward pass."""
    cola_forward: Count
    """The forward pass of this component alone."""
    contradiction: str | None
    """What is wrong with the printed CoLA formula, if anything."""

    @property
    def printed_change_frac(self) -> float:
        """CoLA as printed against Original: −0.5 is half of it."""
        return self.cola_printed.flops / self.original.flops - 1.0

    @property
    def forward_change_frac(self) -> float:
        """CoLA's forward pass against Original: −0.5 is half of it."""
        return self.cola_forward.flops / self.original.flops - 1.0


@dataclass(frozen=True)
class Table6:
    """Table 6, row by row, and the sum of its rows."""

    sizes: Sizes
    rows: tuple[Table6Row, ...]
    total: Table6Row


_EVALUATE: dict[str, Callable[[Sizes], int]] = {
    "6nd²": lambda s: 6 * s.n * s.d**2,
    "48ndr": lambda s: 48 * s.n * s.d * s.r,
    "12ndr": lambda s: 12 * s.n * s.d * s.r,
    "4n²d": lambda s: 4 * s.n**2 * s.d,
    "2nd²": lambda s: 2 * s.n * s.d**2,
    "16ndr": lambda s: 16 * s.n * s.d * s.r,
    "4ndr": lambda s: 4 * s.n * s.d * s.r,
    "6nd·d_ff": lambda s: 6 * s.n * s.d * s.d_ff,
    "18nr(d+d_ff)": lambda s: 18 * s.n * s.r * (s.d + s.d_ff),
    "6nr(d+d_ff)": lambda s: 6 * s.n * s.r * (s.d + s.d_ff),
}

_COLA_FORWARD = {
    "attention Q, K, V": "12ndr",
    "attention product": "4n²d",
    "attention projection": "4ndr",
    "feed-forward": "6nr(d+d_ff)",
}
"""What the CoLA column would say if it counted as the Original column does: 2 FLOPs per entry of each A and B."""


def table6(sizes: Sizes) -> Table6:
    """Table 6 at `sizes`: the paper's formulas beside the consistent forward count, evaluated."""
    printed = {(claim.row, claim.column): claim for claim in TABLE_6}
    rows = []
    for component, forward in _COLA_FORWARD.items():
        cola = printed[component, "CoLA"]
        rows.append(
            Table6Row(
                component,
                original=_count(printed[component, "Original"].formula, sizes),
                cola_printed=_count(cola.formula, sizes),
                cola_forward=_count(forward, sizes),
                contradiction=cola.contradiction,
            )
        )
    total = Table6Row(
        "total",
        original=Count("sum", sum(row.original.flops for row in rows)),
        cola_printed=Count("sum", sum(row.cola_printed.flops for row in rows)),
        cola_forward=Count("sum", sum(row.cola_forward.flops for row in rows)),
        contradiction=None,
    )
    return Table6(sizes, tuple(rows), total)


def _count(formula: str, sizes: Sizes) -> Count:
    return Count(formula, _EVALUATE[formula](sizes))


@dataclass(frozen=True)
class ComponentFlops:
    """Forward FLOPs of one component over all blocks and the whole batch."""

    component: LayerName | Literal["attention_product"]
    formula: str
    """In numbers: blocks × 2 × tokens × the matrices' sizes."""
    flops: int


@dataclass(frozen=True)
class ForwardFlops:
    """Forward FLOPs of a model on one batch of full sequences."""

    batch_size: int
    seq_len: int
    components: tuple[ComponentFlops, ...]
    causal_attention_product: int
    """The attention product over the lower triangle alone: what a kernel that skips masked pairs computes."""

    @property
    def total(self) -> int:
        """Sum of the components, the attention product counted in full."""
        return sum(component.flops for component in self.components)


def forward_flops(model: ModelConfig, batch_size: int) -> ForwardFlops:
    """Forward FLOPs of `model` by component, for `batch_size` sequences of `model.seq_len` tokens.

    The attention product counts all n² pairs of a sequence, masked ones too, as Table 6 does. It is the head count, not
    the key and value head count, that matters there: every query head multiplies its own rows.
    """
    tokens = batch_size * model.seq_len
    components = []
    for layer in (*block_layers(model), head_layer(model)):
        blocks = 1 if layer.name == "head" else model.n_layers
        shapes = " + ".join(f"{rows}×{columns}" for rows, columns in layer.matrices)
        formula = f"{blocks} · 2 · {tokens} · ({shapes})"
        components.append(ComponentFlops(layer.name, formula, blocks * 2 * tokens * layer.weights))
        if layer.name == "v":
            components.append(_attention_product(model, batch_size))
    pairs = model.seq_len * (model.seq_len + 1) // 2
    return ForwardFlops(batch_size, model.seq_len, tuple(components), _product_flops(model, batch_size, pairs))


def _attention_product(model: ModelConfig, batch_size: int) -> ComponentFlops:
    n, width = model.seq_len, model.n_heads * model.head_dim
    formula = f"{model.n_layers} · 4 · {batch_size} · {n}² · {width}"
    return ComponentFlops("attention_product", formula, _product_flops(model, batch_size, n**2))


def _product_flops(model: ModelConfig, batch_size: int, pairs: int) -> int:
    """Q·Kᵀ and its product with V, for `pairs` of positions per head and sequence: 2 FLOPs each per channel."""
    return model.n_layers * 4 * batch_size * pairs * model.n_heads * model.head_dim
