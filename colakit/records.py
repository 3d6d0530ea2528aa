"""What was measured or counted, as frozen records: units in the names, ``None`` where a figure cannot be had.

Tables, TensorBoard, ``metrics.jsonl`` and ``--json`` read these and nothing else. ``SCHEMA_VERSION`` rises when a
field changes its name or meaning.
"""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Record:
    """Base of all records."""

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:  # Any: JSON values
        """The record as JSON-ready values, its `kind` first; records within are dicts too."""
        return {"kind": self.kind, **asdict(self)}


def to_json(value: Any, indent: int | None = None) -> str:  # Any: JSON values
    """`value` as strict JSON, on one line unless indented: NaN and infinities, which JSON has not, become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _finite(value: Any) -> Any:  # Any: JSON values
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


@dataclass(frozen=True)
class StepRecord(Record):
    """One optimizer step. ``loss`` is the mean over its ``tokens`` real targets, in nats, before the update."""

    kind: ClassVar[str] = "step"
    step: int
    loss: float
    accuracy: float
    """Share of the step's targets that were the most probable token, 0 to 1."""
    bits_per_byte: float | None
    """None where the tokenizer does not map its tokens to bytes."""
    lr: float
    grad_norm: float
    tokens: int
    step_ms: float
    """Of the whole step, the wait for its data included."""
    data_ms: float
    """Of it, the wait for data."""
    skipped: bool
    """True where the update was left out."""
    nan_count: int
    """Skipped steps of the run so far."""
    skip_reason: str | None = None
    """``not finite``, of loss or a gradient, or ``spike``; None where the update was made."""

    @property
    def it_per_s(self) -> float:
        """Optimizer steps per second."""
        return 1000.0 / self.step_ms

    @property
    def tokens_per_s(self) -> float:
        """Real tokens per second."""
        return self.tokens * 1000.0 / self.step_ms


@dataclass(frozen=True)
class EvalRecord(Record):
    """Held-out metrics over ``tokens`` real targets that stand for ``text_bytes`` bytes of text."""

    kind: ClassVar[str] = "eval"
    step: int
    val_loss: float
    """Nats per token."""
    perplexity: float
    bits_per_byte: float | None
    """None where the tokenizer does not map its tokens to bytes."""
    accuracy: float
    """Share of targets that were the most probable token, 0 to 1."""
    tokens: int
    text_bytes: int | None
    eval_s: float


@dataclass(frozen=True)
class OptimizerPart:
    """What one part of the optimizer costs in a step."""

    name: str
    """``muon`` or ``adamw``."""
    parameters: int
    ms: float
    """Median over the steps."""
    flops: int
    """Of its matrix products, Newton–Schulz; AdamW has none."""


@dataclass(frozen=True)
class RunSummary(Record):
    """What a finished or interrupted training run reached."""

    kind: ClassVar[str] = "run"
    preset: str
    run_dir: str
    steps: int
    interrupted: bool
    first_loss: float
    last_loss: float
    val_loss: float
    bits_per_byte: float | None
    gzip_bits_per_byte: float | None
    """``gzip -9`` on the same held-out text."""
    accuracy: float
    tokens_seen: int
    nan_count: int
    parameters: int
    train_s: float
    tokens_per_s: float
    data_wait_frac: float
    """Share of the steps' time that went in waiting for data."""
    epochs: dict[str, float]
    """How often each source was read through."""
    optimizer: tuple[OptimizerPart, ...]
    """Empty where every update was skipped."""
    data_fingerprint: str
    prompt: str
    sample: str


@dataclass(frozen=True)
class RunListing(Record):
    """A run folder at a glance."""

    kind: ClassVar[str] = "listing"
    folder: str
    preset: str
    steps: int
    """Of the newest checkpoint."""
    max_steps: int
    last_loss: float | None
    """Of the last step that was recorded."""
    state: Literal["running", "finished", "interrupted"]
    resume: str | None
    """The command that goes on; None where there is nothing to go on from, or nothing left to do."""


@dataclass(frozen=True)
class ResumeProof(Record):
    """Whether a run that was killed and resumed comes to what an undisturbed one comes to, byte for byte."""

    kind: ClassVar[str] = "resume_proof"
    preset: str
    device: str
    killed_after: int
    """The step of the checkpoint that was resumed."""
    steps: int
    """The step at which both were compared."""
    weights: bool
    optimizer: bool
    state: bool
    """Generators, data position and whatever else the next step depends on."""
    losses: bool
    """The losses and gradient norms recorded after the kill."""
    seconds: float

    @property
    def is_exact(self) -> bool:
        """Whether everything is equal."""
        return self.weights and self.optimizer and self.state and self.losses


@dataclass(frozen=True)
class BenchRecord(Record):
    """Speed and peak memory of one preset at one batch size; what could not be had is None, with the reason."""

    kind: ClassVar[str] = "bench"
    preset: str
    batch_size: int
    seq_len: int
    device: str
    dtype: str
    attention: str
    steps: int
    it_per_s: float | None
    """Optimizer steps per second, from the median step time."""
    examples_per_s: float | None
    tokens_per_s: float | None
    step_ms: float | None
    optimizer: tuple[OptimizerPart, ...]
    """Its parts; empty where nothing was measured."""
    vram_gib: float | None
    """Peak memory that torch allocated on the GPU."""
    rss_gib: float | None
    """Peak resident memory of the measuring process."""
    reason: str | None


@dataclass(frozen=True)
class OptimizerBenchRecord(Record):
    """A step of Muon, of its textbook form, of ``torch.optim.Muon`` and of AdamW, on the same matrices."""

    kind: ClassVar[str] = "optimizer_bench"
    preset: str
    device: str
    dtype: str
    """In which Muon multiplies."""
    matrices: int
    parameters: int
    repeats: int
    """Interleaved; every time is a median."""
    muon_ms: float
    textbook_ms: float
    """Eq. 15 as printed, batched by shape, in the same type."""
    torch_muon_ms: float
    adamw_ms: float
    """Fused."""
    textbook_over_muon: float
    torch_muon_over_muon: float
    muon_over_adamw: float
    muon_flops: int
    state_bytes: int
    """Muon's: one momentum per parameter."""
    workspace_bytes: int
    """What its step holds besides, at most: all matrices of one shape."""
    reason: str | None
    """How a figure was had that is not what it would be elsewhere."""


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
    """Their log-probabilities in float32, all at once."""
    chunked_logits: int
    """The same in chunks, as the loss computes them where they are many."""
    is_chunked: bool
    loss_gradients: int
    """Of the loss, by the log-probabilities and the logits held at once; in chunks, by the head's weights too."""
    plain_total: int
    """Without CoLA-M, at the start of the backward pass."""
    cola_m_total: int | None
    """With CoLA-M, at the largest of its peaks."""
    cola_m_peak: str | None
    """Where that is: ``loss forward``, ``loss backward``, or ``block``, when one is computed again."""
    is_cola_m: bool
    """Which of the two the configuration trains with."""


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
    """Computed once more in the backward pass, under CoLA-M or by a loss in chunks."""


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
