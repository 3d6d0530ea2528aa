"""Rules that join several fields of a `RunConfig`: each broken one becomes a `Problem` with value, rule and fix."""

import re
from collections.abc import Iterator

from colakit.config import data_rules
from colakit.config.findings import Finding, broken, value_of
from colakit.config.schema import RunConfig
from colakit.errors import ConfigError, Problem


def check(config: RunConfig) -> Iterator[Finding]:
    """Yield the broken cross-field rules of `config`."""
    yield from _heads(config)
    yield from _ranks(config)
    yield from _fan(config)
    yield from _variants(config)
    yield from data_rules.check(config)
    yield from _batches(config)
    yield from _compile(config)
    yield from _muon(config)
    yield from broken(
        config,
        config.optim.eps < _LEAST_EPS,
        "optim.eps",
        "in float32 this is nothing, and a weight whose gradients are 0 is divided by it",
        "Use 1e-8, or at least 1e-30.",
    )


_LEAST_EPS = 1e-30
"""Well above 1e-38, below which float32 loses digits."""


def check_explicit(config: RunConfig, explicit: frozenset[str]) -> Iterator[Finding]:
    """Yield contradictions among the fields the user set by hand (`explicit`, dotted): those would have no effect."""
    steps = config.train.max_steps
    yield from broken(
        config,
        "optim.warmup_steps" in explicit and config.optim.warmup_steps >= steps,
        "optim.warmup_steps",
        f"the warm-up must end before the run does (train.max_steps = {steps})",
        "Lower it, raise train.max_steps, or leave it out: a short run gets a shorter warm-up by itself.",
        "train.max_steps",
    )
    adamw = config.optim.optimizer == "adamw"
    no_effect = (
        ("model.rank", config.model.linear == "dense", "dense has no low-rank layers", "add --set model.linear=cola"),
        (
            "model.fan_ratio",
            config.model.fan == "none",
            "model.fan = 'none' has no Fourier features",
            "add --set model.fan=qkv",
        ),
        ("optim.momentum", adamw, "AdamW has no such momentum (it has beta1)", "add --set optim.optimizer=muon"),
        ("optim.nesterov", adamw, "AdamW has no such momentum (it has beta1)", "add --set optim.optimizer=muon"),
        ("optim.ns_steps", adamw, "AdamW does not orthogonalise", "add --set optim.optimizer=muon"),
        ("optim.ns_coefficients", adamw, "AdamW does not orthogonalise", "add --set optim.optimizer=muon"),
        ("optim.update_scaling", adamw, "AdamW's updates are not scaled", "add --set optim.optimizer=muon"),
        *data_rules.without_effect(config),
    )
    for field, useless, rule, remedy in no_effect:
        yield from broken(
            config,
            # Unsetting a field by hand is no contradiction.
            useless and field in explicit and value_of(config, field) is not None,
            field,
            f"{rule}, so this would have no effect",
            f"Leave {field} out, or {remedy}.",
            *re.findall(r"--set ([\w.]+)=", remedy),
        )


def _heads(config: RunConfig) -> Iterator[Finding]:
    model = config.model
    d, h, k = model.d_model, model.n_heads, model.n_kv_heads
    yield from broken(
        config,
        d % h != 0,
        "model.n_heads",
        f"d_model ({d}) must be divisible by n_heads",
        f"Use one of {_divisors(d, h)}.",
        "model.d_model",
    )
    yield from broken(
        config,
        d % h == 0 and model.head_dim % 2 != 0,
        "model.n_heads",
        f"head_dim (d_model / n_heads = {model.head_dim}) must be even: rotary positions turn pairs",
        "Change d_model or n_heads.",
        "model.d_model",
    )
    yield from broken(
        config,
        h % k != 0,
        "model.n_kv_heads",
        f"n_heads ({h}) must be divisible by n_kv_heads",
        f"Use one of {_divisors(h, k)}.",
        "model.n_heads",
    )


def _divisors(n: int, near: int) -> str:
    divisors = [i for i in range(1, n + 1) if n % i == 0]
    closest = sorted(sorted(divisors, key=lambda i: (abs(i - near), i))[:3])
    return ", ".join(map(str, closest))


def _ranks(config: RunConfig) -> Iterator[Finding]:
    """§2.2: r < min(d_in, d_out), of the whole layer. Reported once, with every layer that breaks it."""
    model = config.model
    if model.linear == "dense" or model.d_model % model.n_heads:
        return
    shapes = {
        "q_proj": (model.d_model, model.d_model),
        "k_proj and v_proj": (model.d_model, model.kv_width),
        "o_proj": (model.d_model, model.d_model),
        "gate_up_proj": (model.d_model, 2 * model.d_ff),
        "down_proj": (model.d_ff, model.d_model),
    }
    if not model.tie_embeddings:
        shapes["lm_head"] = (model.d_model, model.vocab_size)
    wrong = [
        f"{name} ({d_in} → {d_out}) would have rank {model.rank_of(d_in)}"
        for name, (d_in, d_out) in shapes.items()
        if model.rank_of(d_in) >= min(d_in, d_out)
    ]
    limit = min(min(shape) for shape in shapes.values())
    yield from broken(
        config,
        bool(wrong),
        "model.rank",
        "the rank must be below both sides of a layer, but " + "; ".join(wrong),
        f"Set model.rank below {limit}." if limit > 1 else "Widen the model.",
        *(f"model.{size}" for size in ("d_model", "n_heads", "n_kv_heads", "d_ff", "vocab_size")),
    )


def _fan(config: RunConfig) -> Iterator[Finding]:
    model = config.model
    yield from broken(
        config,
        model.fan == "qkv" and model.linear == "dense",
        "model.fan",
        "CoLA_FAN is a low-rank layer",
        "Set model.linear=cola or model.fan=input.",
        "model.linear",
    )
    is_cola = model.fan == "qkv" and model.fan_ratio == 0
    has_no_dropout = model.fan != "qkv" or is_cola
    narrowest = model.kv_width if model.fan == "qkv" else model.d_model
    yield from broken(
        config,
        # A ratio of exactly 0 turns CoLA_FAN into CoLA; the FAN layer of ATF would be left without a purpose.
        int(narrowest * model.fan_ratio) == 0 and not (model.fan == "none" or is_cola),
        "model.fan_ratio",
        f"int(width · fan_ratio) is 0 for a layer of width {narrowest}: it would have no features",
        "Raise it, or set model.fan=none.",
        "model.d_model",
        "model.n_kv_heads",
        "model.n_heads",
    )
    yield from broken(
        config,
        has_no_dropout and model.fan_dropout > 0,
        "model.fan_dropout",
        "only CoLA_FAN (model.fan = 'qkv', fan_ratio above 0) has this dropout",
        "Set it to 0.",
        "model.fan",
        "model.fan_ratio",
    )
    deepest = model.fan_dropout * (1 + model.fan_dropout_growth * (model.n_layers - 1))
    yield from broken(
        config,
        deepest >= 1,
        "model.fan_dropout_growth",
        f"the last block would drop {deepest:.2f}",
        "Lower it.",
        "model.fan_dropout",
        "model.n_layers",
    )
    yield from broken(
        config,
        model.fan_dropout_growth > 0 and (has_no_dropout or model.fan_dropout == 0),
        "model.fan_dropout_growth",
        "there is no fan_dropout that could grow",
        "Set it to 0.",
        "model.fan_dropout",
        "model.fan",
        "model.fan_ratio",
    )


def _variants(config: RunConfig) -> Iterator[Finding]:
    model = config.model
    yield from broken(
        config,
        model.norm in ("hybrid", "listing") and model.qkv_norm == "none",
        "model.qkv_norm",
        f"{model.norm} norm normalises Q, K and V (eq. 3)",
        "Use rms or l2.",
        "model.norm",
    )
    yield from broken(
        config,
        model.remat == "cola_m" and model.linear == "dense",
        "model.remat",
        "CoLA-M keeps low-rank activations; dense layers have none",
        "Set model.remat=none.",
        "model.linear",
    )
    yield from broken(
        config,
        config.train.device == "cpu" and model.attention == "flash",
        "model.attention",
        "flash-attn runs on CUDA only (train.device = 'cpu')",
        "Use auto or sdpa.",
        "train.device",
    )


def _compile(config: RunConfig) -> Iterator[Finding]:
    yield from broken(
        config,
        config.train.compile is True and not config.can_compile,
        "train.compile",
        "CoLA-M is not compiled where documents of one sequence do not see each other",
        "Use auto or false, model.remat=none, or data.attend_across_documents=true.",
        "model.remat",
        "data.attend_across_documents",
    )


_MAX_TOKENS = 2**32
"""Of one optimizer step: beyond any run, so a slip of the keyboard."""


def _batches(config: RunConfig) -> Iterator[Finding]:
    tokens = config.train.batch_size * config.model.seq_len
    yield from broken(
        config,
        tokens > _MAX_TOKENS,
        "train.batch_size",
        f"a step of batch_size × seq_len ({config.model.seq_len:,}) is {tokens:,} tokens, more than 2^32",
        f"Use at most {max(1, _MAX_TOKENS // config.model.seq_len):,}, or shorter sequences.",
        "model.seq_len",
    )
    batch, micro = config.train.batch_size, config.train.effective_micro_batch_size
    yield from broken(
        config,
        batch % micro != 0,
        "train.micro_batch_size",
        f"batch_size ({batch}) must be divisible by micro_batch_size",
        f"Use one of {_divisors(batch, micro)}.",
        "train.batch_size",
    )


def check_divides(config: RunConfig, world_size: int) -> None:
    """Raise ConfigError where the batch cannot be divided among so many processes."""
    batch = config.train.batch_size
    if batch % world_size:
        rule = f"it must be divisible by the number of processes ({world_size})"
        fix = f"Use a multiple of {world_size}, or start {_divisors(batch, world_size)} processes."
        raise ConfigError([Problem("train.batch_size", batch, rule, fix)], of=config.preset)


_LARGEST_SINGULAR_VALUE = 2.0
"""Newton–Schulz is to bring every singular value near 1."""


def _muon(config: RunConfig) -> Iterator[Finding]:
    optim = config.optim
    values = [i / 1000 for i in range(1, 1001)]
    a, b, c = optim.ns_coefficients
    for _ in range(optim.ns_steps):
        # One part in a hundred more each time: rounding must not carry them off. Far out they are not followed.
        values = [s if abs(s) > 1e6 else 1.01 * (a * s + b * s**3 + c * s**5) for s in values]
    largest = max(map(abs, values))
    yield from broken(
        config,
        largest > _LARGEST_SINGULAR_VALUE,
        "optim.ns_coefficients",
        f"{optim.ns_steps} iterations would make a singular value of a normalised matrix {largest:.3g}",
        "Choose coefficients that bring 0 to 1 near 1, as 3.4445, -4.775, 2.0315 do.",
        "optim.ns_steps",
    )
