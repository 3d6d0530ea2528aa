"""Floating point operations of an optimizer step of any configured model, in closed form.

A multiply and an add count as two. Only matrix products are counted, as PyTorch's own counter does: biases, norms,
activations, rotary positions, the softmax, the embedding's lookup and AdamW's update are not. Attention is that over
whole sequences; documents that do not attend to each other (`data.attend_across_documents`) cost at most that.
"""

from collections.abc import Iterator

from colakit.analysis.hardware import precision_of
from colakit.analysis.inventory import group_of, parameters
from colakit.analysis.layers import Layer, block_layers, head_layer
from colakit.analysis.newton_schulz import cheaper_form, newton_schulz_flops
from colakit.analysis.table6 import TRAINING
from colakit.config.schema import ModelConfig, RunConfig
from colakit.records.analysis import ComponentFlops, FlopRecord, SeqLenFlops

SEQ_LEN_FACTORS = (1, 2, 4, 8, 16)
"""Multiples of a model's own sequence length at which its growth is shown."""


def step_flops(config: RunConfig) -> FlopRecord:
    """One optimizer step of `config`, full sequences, by component.

    It is the head count, not the key and value head count, that matters in the attention product: every query head
    multiplies its own rows.
    """
    model, batch_size = config.model, config.train.batch_size
    components = _components(config)
    forward = sum(c.forward for c in components)
    pairs = model.seq_len * (model.seq_len + 1) // 2
    causal = _product_flops(model, batch_size, pairs)
    full = _product_flops(model, batch_size, model.seq_len**2)
    recompute = sum(c.recompute for c in components)
    muon = newton_schulz(config)
    tokens = batch_size * model.seq_len
    return FlopRecord(
        preset=config.preset,
        max_steps=config.train.max_steps,
        batch_size=batch_size,
        seq_len=model.seq_len,
        tokens=tokens,
        components=components,
        forward=forward,
        model_flops=TRAINING * forward,
        attention_pairs="all",
        causal_attention_product=causal,
        causal_model_flops=TRAINING * (forward - full + causal),
        recompute=recompute,
        newton_schulz=muon,
        hardware_flops=TRAINING * forward + recompute + muon,
        model_flops_per_token=TRAINING * forward // tokens,
        by_seq_len=tuple(_at(model, factor * model.seq_len) for factor in SEQ_LEN_FACTORS),
        attention_overtakes_at=_layers_per_token(model) // _product_flops(model, 1, 1) + 1,
    )


def _components(config: RunConfig) -> tuple[ComponentFlops, ...]:
    model, train = config.model, config.train
    tokens = train.batch_size * model.seq_len
    components: list[ComponentFlops] = []
    for layer in block_layers(model):
        again = _recomputed(layer, model) if model.remat == "cola_m" else 0
        components.append(_component(layer, model.n_layers, tokens, again))
        if layer.name == "v":
            components.append(_attention_product(model, train.batch_size))
    components.append(_component(head_layer(model), 1, tokens, 0))
    return tuple(components)


def _at(model: ModelConfig, seq_len: int) -> SeqLenFlops:
    product = _product_flops(model, 1, seq_len)
    per_token = _layers_per_token(model) + product
    return SeqLenFlops(seq_len, TRAINING * per_token, product / per_token)


def _layers_per_token(model: ModelConfig) -> int:
    """Forward FLOPs of one token in all but the attention product: they do not grow with the sequence."""
    layers = model.n_layers * sum(layer.multiply_adds for layer in block_layers(model))
    return 2 * (layers + head_layer(model).multiply_adds)


def _component(layer: Layer, blocks: int, tokens: int, multiply_adds_again: int) -> ComponentFlops:
    shapes = " + ".join(f"{rows}×{columns}" for rows, columns in layer.matrices)
    forward = blocks * 2 * tokens * layer.multiply_adds
    return ComponentFlops(
        layer.name,
        f"{blocks} · 2 · {tokens} · ({shapes})",
        forward=forward,
        training=TRAINING * forward,
        recompute=blocks * 2 * tokens * multiply_adds_again,
    )


def _recomputed(layer: Layer, model: ModelConfig) -> int:
    """Multiply-adds of one token that CoLA-M repeats: of all matrices with a bias, so of no A and not of FAN's W_p.

    The last product of a block is not repeated where nothing behind it needs its result: in pre and hybrid wiring it
    goes into the residual sum, in post and listing into a norm.
    """
    if layer.name == "down" and model.norm in ("pre", "hybrid"):
        return 0
    kept = {"a", "a_p", "a_np", "w_p"}
    return sum(w.size for w in layer.weights if w.matrices and w.name not in kept)


def _attention_product(model: ModelConfig, batch_size: int) -> ComponentFlops:
    n, width = model.seq_len, model.n_heads * model.head_dim
    flops = _product_flops(model, batch_size, n**2)
    formula = f"{model.n_layers} · 4 · {batch_size} · {n}² · {width}"
    again = flops if model.remat == "cola_m" else 0
    return ComponentFlops("attention_product", formula, flops, TRAINING * flops, again)


def _product_flops(model: ModelConfig, batch_size: int, pairs: int) -> int:
    """Q·Kᵀ and its product with V, for `pairs` of positions per head and sequence: 2 FLOPs each per channel."""
    return model.n_layers * 4 * batch_size * pairs * model.n_heads * model.head_dim


def newton_schulz(config: RunConfig) -> int:
    """Muon's iterations over all matrices it updates, each in the form that the device takes.

    A GPU that multiplies bfloat16 iterates in the textbook's form, anything else in the one with fewer operations.
    """
    if config.optim.optimizer != "muon":
        return 0
    steps, a = config.optim.ns_steps, config.optim.ns_coefficients[0]
    on_cuda = precision_of(config).device == "cuda"
    return sum(
        newton_schulz_flops(short, long, steps, a, "textbook" if on_cuda else cheaper_form(short, long, steps, a))
        for short, long in muon_matrices(config.model)
    )


def muon_matrices(model: ModelConfig) -> Iterator[tuple[int, int]]:
    """Shorter and longer side of each matrix that Muon would update."""
    for p in parameters(model):
        if group_of(p.role, muon=True) == "muon":
            sides = sorted((p.shape[0] // p.matrices, p.shape[1]))
            yield from [(sides[0], sides[1])] * p.matrices
