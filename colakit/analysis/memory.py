"""What a training step holds in memory, in closed form and before it is run: weights to logits, by component.

Activations are the storages that eager PyTorch keeps between forward and backward pass; the peak is where the loss is
computed, with its gradients. Left out: gradients of activations behind it, which replace what they are made from, what
a kernel needs while it runs, the allocator's rounding, and on CUDA the context.

Devices differ. On a CPU dropout keeps its mask in the type of its input, and the attention's output is copied for its
projection. On CUDA each is one kernel.
Attention leaves the fused kernels for single operations, which keep n² weights, on a CPU with dropout inside it, and on
CUDA in float32 with fewer key and value heads than query heads.

Documents that do not attend to each other (`data.attend_across_documents`) add one thing, however many there are:
cosines and sines for every token of the batch instead of every position of a sequence. Outside the fused kernels they
keep fewer than n² weights; the ledger does not know their lengths and counts n², those of one that fills its sequence.
"""

from typing import Literal

from colakit.analysis.chunking import tokens_per_chunk
from colakit.analysis.hardware import FLOAT32_BYTES, Precision, precision_of
from colakit.analysis.inventory import group_of, parameters
from colakit.analysis.layers import Layer, block_layers
from colakit.config.schema import ModelConfig, RunConfig
from colakit.records.analysis import MemoryRecord, StageMemory

Stage = Literal["embedding", "norms", "qkv", "attention", "o", "gate_up", "down", "head"]
STAGES: tuple[Stage, ...] = ("embedding", "norms", "qkv", "attention", "o", "gate_up", "down", "head")

_INT64 = 8


def evaluation_bytes(model: ModelConfig, precision: Precision, tokens: int) -> int:
    """What scoring `tokens` tokens at once takes beside the weights, at most.

    Without gradients two residual streams stand at a time, and the activations of one stage of a block, or a chunk of
    logits twice: as they come, and as what they are compared into.
    """
    streams = 2 * tokens * FLOAT32_BYTES * model.d_model
    stage = tokens * max(_block(model, 0, precision).values())
    logits = min(tokens, tokens_per_chunk(model.vocab_size)) * FLOAT32_BYTES * model.vocab_size
    copies = _weight_copies(model, precision, blocks=model.n_layers, head=True)
    return copies + streams + max(stage, 2 * logits)


def memory_ledger(config: RunConfig) -> MemoryRecord:
    """The ledger of one micro-batch of `config` at its precision, with PyTorch's fused attention."""
    model, precision = config.model, precision_of(config)
    batch_size = config.train.effective_micro_batch_size
    tokens = batch_size * model.seq_len
    sizes = {"muon": 0, "adamw_decayed": 0, "adamw_plain": 0}
    for p in parameters(model):
        sizes[group_of(p.role, muon=config.optim.optimizer == "muon")] += p.size
    weights = FLOAT32_BYTES * sum(sizes.values())
    muon_state, adamw_state = FLOAT32_BYTES * sizes["muon"], 2 * (weights - FLOAT32_BYTES * sizes["muon"])
    copies = _weight_copies(model, precision, blocks=model.n_layers, head=True)
    isolated = config.data.isolates_documents
    activations, block = _activations(model, precision, tokens, isolated=isolated)
    plain = sum(stage.plain_bytes for stage in activations)
    row = FLOAT32_BYTES * model.vocab_size
    logits, chunked_logits = tokens * row, min(tokens, tokens_per_chunk(model.vocab_size)) * row
    workspace = _loss_workspace(model, precision, tokens, chunked_logits)
    by_input, by_weights = _loss_gradients(model, precision, tokens)
    loss = copies + chunked_logits + workspace + by_input + by_weights
    # The gradient of weights that are the embedding's too waits for the other half, which comes last.
    waiting = by_weights if model.tie_embeddings else 0
    fixed = 2 * weights + muon_state + adamw_state
    plain_total = fixed + plain + loss
    cola_m = cola_m_total = peak = None
    if model.linear == "cola":
        cola_m = sum(stage.cola_m_bytes or 0 for stage in activations)
        # Autocast keeps its copies until the forward pass ends.
        peaks = {"loss": loss, "block": block + waiting + tokens * _first_gradients(model, precision)}
        peak = max(peaks, key=lambda name: peaks[name])
        cola_m_total = fixed + cola_m + peaks[peak]
    return MemoryRecord(
        device=precision.device,
        dtype=precision.dtype,
        batch_size=batch_size,
        seq_len=model.seq_len,
        weights=weights,
        weight_copies=copies,
        gradients=weights,
        muon_state=muon_state,
        adamw_state=adamw_state,
        activations=activations,
        plain_activations=plain,
        cola_m_activations=cola_m,
        recomputed_block=block if model.linear == "cola" else None,
        logits=logits,
        chunked_logits=chunked_logits,
        loss_workspace=workspace,
        loss_gradients=by_input + by_weights,
        plain_total=plain_total,
        cola_m_total=cola_m_total,
        cola_m_peak=peak,
        is_cola_m=model.remat == "cola_m",
    )


def _activations(
    model: ModelConfig, p: Precision, tokens: int, *, isolated: bool
) -> tuple[tuple[StageMemory, ...], int]:
    """By component, without CoLA-M and what it keeps; and what computing a block again holds besides.

    That is the last block: it is computed again first, while all others are still held.
    """
    blocks = [_block(model, depth, p) for depth in range(model.n_layers)]
    ends = _ends(model, p)
    kept = _kept_by_cola_m(model, p)
    tables = {stage: _tables(model, p, stage, positions=tokens if isolated else model.seq_len) for stage in STAGES}
    gathered = {"attention": tokens * FLOAT32_BYTES * model.head_dim} if isolated else {}  # once, for all blocks
    stages = tuple(
        StageMemory(
            stage,
            plain_bytes=tokens * (sum(b[stage] for b in blocks) + ends[stage]) + tables[stage],
            cola_m_bytes=tokens * (model.n_layers * kept[stage] + ends[stage]) + gathered.get(stage, 0)
            if model.linear == "cola"
            else None,
        )
        for stage in STAGES
    )
    again = tokens * (sum(blocks[-1].values()) - sum(kept.values())) + _weight_copies(model, p, blocks=1, head=False)
    if isolated and p.dtype != "float32":  # copies of the tables
        again += tables["attention"] // model.n_layers
    return stages, again


# Bytes of one token from here on. A product keeps its input in its own type: itself, or the copy autocast makes.


def _block(model: ModelConfig, depth: int, p: Precision) -> dict[Stage, int]:
    layers = {layer.name: layer for layer in block_layers(model)}
    qkv = [layers["q"], layers["k"], layers["v"]]
    d, d_ff, item = model.d_model, model.d_ff, p.itemsize
    stages = dict.fromkeys(STAGES, 0)
    stages["norms"] = _norms_around(model, depth) * _norm(d, 1, FLOAT32_BYTES)
    stages["qkv"] = item * d + _low_rank(qkv, p, dropout=model.fan_dropout > 0) + _fan_arguments(model, qkv, p)
    if "fan" in layers:  # autocast copies its input for each of its two products
        copies = 2 if p.dtype == "bfloat16" else 1
        stages["qkv"] += item * (copies * d + layers["fan"].matrices[0][0])
    stages["attention"] = _attention(model, p)
    stages["o"] = _low_rank([layers["o"]], p) + _dropout_mask(d, item, p, active=model.post_attention_dropout > 0)
    if p.device == "cpu" or _is_unfused(model, p):  # heads lie apart, and are copied side by side
        stages["o"] += item * d
    stages["gate_up"] = item * (d + 2 * d_ff) + _low_rank([layers["gate_up"]], p)
    stages["down"] = item * d_ff + _low_rank([layers["down"]], p)
    if model.norm == "listing":  # the gate multiplies the feed-forward's output
        stages["down"] += item * d
    return stages


def _norms_around(model: ModelConfig, depth: int) -> int:
    return 1 if model.norm == "hybrid" and depth > 0 else 2


def _norm(width: int, groups: int, itemsize: int) -> int:
    """An RMSNorm: its input, and 1/RMS of each group."""
    return FLOAT32_BYTES * groups + itemsize * width


def _dropout_mask(width: int, itemsize: int, p: Precision, *, active: bool) -> int:
    return width * (itemsize if p.device == "cpu" else 1) if active else 0


def _low_rank(layers: list[Layer], p: Precision, *, dropout: bool = False) -> int:
    """A·x and GELU of it, for every branch, and the masks of the dropout between A and B."""
    ranks = sum(w.shape[0] for layer in layers for w in layer.weights if w.name.startswith("a"))
    return 2 * p.itemsize * ranks + _dropout_mask(ranks, p.itemsize, p, active=dropout)


def _fan_arguments(model: ModelConfig, qkv: list[Layer], p: Precision) -> int:
    """The arguments of cosine and sine in CoLA_FAN."""
    return p.itemsize * sum(w.shape[0] for layer in qkv for w in layer.weights if w.name == "b_p")


def _attention(model: ModelConfig, p: Precision) -> int:
    """Q, K and V before and after their norms, the attention's output, and the logarithm of its sums."""
    d, kv, item = model.d_model, model.kv_width, p.itemsize
    widths = ((d, model.n_heads), (kv, model.n_kv_heads), (kv, model.n_kv_heads))
    if model.effective_qkv_norm == "rms":
        normed = sum(_norm(width, heads, item) for width, heads in widths)
    elif model.effective_qkv_norm == "l2":  # CUDA's autocast takes the length of a float32 copy
        upcast = p.device == "cuda" and p.dtype == "bfloat16"
        normed = sum((item + 4 * upcast) * width + 2 * (4 if upcast else item) * heads for width, heads in widths)
    else:
        normed = 0
    if _is_unfused(model, p):  # K and V repeated for every query head; weights, and with dropout their product, mask
        weights = model.n_heads * model.seq_len
        products = (2 if model.attention_dropout > 0 else 1) * item * weights
        return normed + item * 3 * d + products + _dropout_mask(weights, item, p, active=model.attention_dropout > 0)
    if model.effective_qkv_norm == "none" and model.linear == "dense":
        normed = item * (d + kv)  # V is a part of one wide product, which stays whole
    return normed + item * (2 * d + 2 * kv) + FLOAT32_BYTES * model.n_heads


def _is_unfused(model: ModelConfig, p: Precision) -> bool:
    """Whether PyTorch has no fused attention kernel for it."""
    if p.device == "cpu":
        return model.attention_dropout > 0
    return p.dtype == "float32" and model.n_kv_heads < model.n_heads


def _ends(model: ModelConfig, p: Precision) -> dict[Stage, int]:
    """Outside the blocks: token ids, final norm, and the head's first factor: its input, and A·x."""
    stages = dict.fromkeys(STAGES, 0)
    stages["embedding"] = _INT64
    stages["norms"] = _norm(model.d_model, 1, FLOAT32_BYTES)
    stages["norms"] += _dropout_mask(model.d_model, FLOAT32_BYTES, p, active=model.final_dropout > 0)
    if model.linear == "cola" and not model.tie_embeddings:
        stages["head"] = p.itemsize * (model.d_model + model.rank_of(model.d_model))
    return stages


def _first_gradients(model: ModelConfig, p: Precision) -> int:
    """While a whole block is there: by the feed-forward's hidden state; in bfloat16 by the residual stream too, twice.

    In float32 those take the place of what the head has kept.
    """
    residual = 0 if p.dtype == "float32" else (2 * FLOAT32_BYTES + p.itemsize) * model.d_model
    return p.itemsize * model.d_ff + residual


def _kept_by_cola_m(model: ModelConfig, p: Precision) -> dict[Stage, int]:
    """A block's input, and what its A's (and FAN's W_p) give."""
    stages = dict.fromkeys(STAGES, 0)
    stages["norms"] = FLOAT32_BYTES * model.d_model
    for layer in block_layers(model):
        stage: Stage = "qkv" if layer.name in ("q", "k", "v", "fan") else layer.name  # type: ignore[assignment]
        kept = (w.shape[0] for w in layer.weights if w.name in ("a", "a_p", "a_np", "w_p"))
        stages[stage] += p.itemsize * sum(kept)
    return stages


# Bytes that do not grow with the batch, but where documents are isolated.


def _tables(model: ModelConfig, p: Precision, stage: Stage, *, positions: int) -> int:
    """The rotary tables; in bfloat16 each block's Q and K have copies of their own. The listing's gates."""
    table = positions * model.head_dim // 2
    if stage == "attention":
        return 2 * FLOAT32_BYTES * table if p.dtype == "float32" else model.n_layers * 4 * p.itemsize * table
    if stage == "down" and model.norm == "listing":
        return model.n_layers * FLOAT32_BYTES * model.d_model
    return 0


def _last_product(model: ModelConfig) -> tuple[int, int]:
    """Width of the input of the product that gives the logits, and entries of its weights, a bias included."""
    if model.linear == "dense" or model.tie_embeddings:
        return model.d_model, model.vocab_size * model.d_model
    rank = model.rank_of(model.d_model)
    return rank, model.vocab_size * (rank + 1)


def _input_bytes(model: ModelConfig, p: Precision) -> int:
    """A number of that input: hidden states are float32, and what an A gives is of the products' type."""
    return FLOAT32_BYTES if model.linear == "dense" or model.tie_embeddings else p.itemsize


def _loss_workspace(model: ModelConfig, p: Precision, tokens: int, chunked_logits: int) -> int:
    """The input; in bfloat16 copies of it, of a chunk's logits, of the weights, and of their gradient by one chunk."""
    width, weights = _last_product(model)
    held = tokens * width * _input_bytes(model, p)
    if p.dtype == "float32":
        return held
    copied = tokens * width if _input_bytes(model, p) == FLOAT32_BYTES else 0
    return held + p.itemsize * (copied + chunked_logits // FLOAT32_BYTES + 2 * weights)


def _loss_gradients(model: ModelConfig, p: Precision, tokens: int) -> tuple[int, int]:
    """By the input of the last product, and by its weights."""
    width, weights = _last_product(model)
    return tokens * width * _input_bytes(model, p), FLOAT32_BYTES * weights


def _weight_copies(model: ModelConfig, p: Precision, *, blocks: int, head: bool) -> int:
    """Of the matrices a token meets, and of the per-head norms, whose input is in the products' type.

    Under CoLA-M a block's are made again with it. Of the head it is the first factor: the loss drops its own copy.
    """
    if p.dtype == "float32":
        return 0
    block = sum(layer.multiply_adds for layer in block_layers(model))
    norms = 3 * model.head_dim if model.effective_qkv_norm == "rms" else 0
    first = model.d_model * model.rank_of(model.d_model) if model.linear == "cola" and not model.tie_embeddings else 0
    return p.itemsize * (blocks * (block + norms) + (first if head else 0))
