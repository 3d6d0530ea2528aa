"""What `colakit params`, `flops` and `paper` count."""

from dataclasses import dataclass
from typing import ClassVar

from colakit.records.base import Record


@dataclass(frozen=True)
class ComponentParams:
    """Parameters of one component of a model."""

    name: str
    params: int
    share_frac: float
    """Of the model's total."""


@dataclass(frozen=True)
class ParamClaim:
    """What the paper prints for a model's parameters, and how far the count is from it."""

    value: int
    table: str
    deviation_frac: float
    """The count against the printed figure: 0.01 is 1 % more."""
    contradiction: str | None
    """Why the figure cannot be met, where the paper's other figures exclude it."""


@dataclass(frozen=True)
class RoutedParam:
    """One parameter, and who updates it."""

    name: str
    role: str
    shape: tuple[int, ...]
    matrices: int
    """How many matrices the optimizer sees in it; 0 in a vector."""
    optimizer: str
    weight_decay: bool


@dataclass(frozen=True)
class StageMemory:
    """Activations of one component."""

    name: str
    plain_bytes: int
    cola_m_bytes: int | None
    """What CoLA-M keeps; None in a model without low-rank layers."""


@dataclass(frozen=True)
class MemoryRecord(Record):
    """Bytes that a training step of one micro-batch holds at its peak, the optimizer's state allocated."""

    kind: ClassVar[str] = "memory"
    device: str
    dtype: str
    """Of the products; weights, gradients, optimizer state and residual stream are float32."""
    batch_size: int
    seq_len: int
    weights: int
    weight_copies: int
    """Of the matrices, in the type of the products: autocast makes them, and the backward pass needs them.

    CoLA-M holds those of one block at a time, counted in `recomputed_block`."""
    gradients: int
    muon_state: int
    """One momentum per parameter: 1× its weights."""
    adamw_state: int
    """Two moments per parameter: 2×."""
    activations: tuple[StageMemory, ...]
    plain_activations: int
    """Without CoLA-M, logits apart."""
    cola_m_activations: int | None
    """What CoLA-M keeps of them; None in a model without low-rank layers."""
    recomputed_block: int | None
    """What computing one block again holds besides, when the logits are gone."""
    logits: int
    """In float32, all at once, as they never are unless one chunk holds them."""
    chunked_logits: int
    """Of one chunk, as the loss computes them."""
    loss_workspace: int
    """What the loss holds besides them: its input, and copies in the type of the products."""
    loss_gradients: int
    """Of the loss, by its input and by the head's last weights: made with it, they wait for the backward pass."""
    plain_total: int
    """Without CoLA-M, while the loss is computed."""
    cola_m_total: int | None
    """With CoLA-M, at the largest of its peaks."""
    cola_m_peak: str | None
    """Where that is: ``loss``, or ``block``, when one is computed again."""
    is_cola_m: bool
    """Which of the two the configuration trains with."""

    @property
    def total(self) -> int:
        """Of the configuration as it trains."""
        return self.cola_m_total if self.is_cola_m and self.cola_m_total is not None else self.plain_total


@dataclass(frozen=True)
class ParamRecord(Record):
    """Parameters of one model, by component."""

    kind: ClassVar[str] = "params"
    preset: str
    total: int
    non_embedding: int
    components: tuple[ComponentParams, ...]
    claim: ParamClaim | None
    reason: str | None
    """Why there is no claim to compare with."""
    routing: tuple[RoutedParam, ...] | None = None
    memory: MemoryRecord | None = None


@dataclass(frozen=True)
class ComponentFlops:
    """Floating point operations of one component in one optimizer step."""

    name: str
    formula: str
    """The forward pass in numbers: blocks × 2 × tokens × the matrices' sizes."""
    forward: int
    training: int
    """Forward and backward."""
    recompute: int
    """Computed once more in the backward pass, under CoLA-M."""


@dataclass(frozen=True)
class SeqLenFlops:
    """What a token costs at another sequence length."""

    seq_len: int
    training_flops_per_token: int
    attention_product_frac: float


@dataclass(frozen=True)
class FlopRecord(Record):
    """One optimizer step of one model, a multiply and an add counted as two; matrix products alone."""

    kind: ClassVar[str] = "flops"
    preset: str
    max_steps: int
    """Of the whole run."""
    batch_size: int
    seq_len: int
    tokens: int
    components: tuple[ComponentFlops, ...]
    forward: int
    model_flops: int
    """Forward and backward, as model-FLOP utilisation (MFU) takes it: no recompute, no optimizer."""
    attention_pairs: str
    """Which pairs of positions the components and `model_flops` count: all n², masked ones too."""
    causal_attention_product: int
    """The attention product's forward pass over the lower triangle alone."""
    causal_model_flops: int
    """`model_flops` with that."""
    recompute: int
    newton_schulz: int
    """Muon's orthogonalisation, once a step whatever the batch; 0 with AdamW alone."""
    hardware_flops: int
    """All products of the step: model, recompute and Newton–Schulz."""
    model_flops_per_token: int
    by_seq_len: tuple[SeqLenFlops, ...]
    attention_overtakes_at: int
    """The sequence length from which the attention product costs more than all the rest."""


@dataclass(frozen=True)
class Table6Component:
    """One component of Table 6 at given sizes, three ways."""

    name: str
    dense_formula: str
    """As the paper prints it: a forward pass."""
    paper_cola_formula: str
    cola_formula: str
    paper_dense: int
    paper_cola: int
    dense_forward: int
    cola_forward: int
    dense_training: int
    cola_training: int
    paper_ratio: float
    """CoLA over Original, as printed."""
    ratio: float
    """CoLA over dense, counted alike."""


@dataclass(frozen=True)
class Table6Record(Record):
    """The paper's Table 6 at given sizes: as printed, the forward pass, and forward with backward."""

    kind: ClassVar[str] = "table6"
    n: int
    d: int
    r: int
    d_ff: int
    components: tuple[Table6Component, ...]
    totals: Table6Component
