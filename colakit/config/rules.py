"""Rules that join several fields of a `RunConfig`: each broken one becomes a `Problem` with value, rule and fix."""

from collections.abc import Iterator

from colakit.config.schema import ModelConfig, RunConfig
from colakit.errors import Problem

# A problem, and the fields it was found from: not reported where one of them already has a problem of its own.
Finding = tuple[Problem, tuple[str, ...]]


def check(config: RunConfig) -> Iterator[Finding]:
    """Yield the broken cross-field rules of `config`."""
    yield from _heads(config.model)
    yield from _ranks(config.model)
    yield from _variants(config)
    yield from _data(config)
    yield from _batches(config)


def check_explicit(config: RunConfig, explicit: frozenset[str]) -> Iterator[Finding]:
    """Yield contradictions among the fields the user set by hand (`explicit`, dotted): those would have no effect."""
    if "optim.warmup_steps" in explicit and config.optim.warmup_steps >= config.train.max_steps:
        yield (
            Problem(
                "optim.warmup_steps",
                config.optim.warmup_steps,
                f"the warm-up must end before the run does (train.max_steps = {config.train.max_steps})",
                "Lower it, raise train.max_steps, or leave it out: a short run gets a shorter warm-up by itself.",
            ),
            ("optim.warmup_steps", "train.max_steps"),
        )
    model, optim = config.model, config.optim
    no_effect = (
        (
            "model.rank",
            model.linear == "dense",
            "model.linear = 'dense' has no low-rank layers",
            "model.linear=cola",
        ),
        (
            "model.fan_ratio",
            model.fan == "none",
            "model.fan = 'none' has no Fourier features",
            "model.fan=qkv",
        ),
        (
            "optim.momentum",
            optim.optimizer == "adamw",
            "AdamW has no such momentum (it has beta1)",
            "optim.optimizer=muon",
        ),
        (
            "optim.ns_steps",
            optim.optimizer == "adamw",
            "AdamW does not orthogonalise",
            "optim.optimizer=muon",
        ),
        (
            "data.dataset",
            config.data.source != "hub",
            f"data.source = {config.data.source!r} reads no Hugging Face dataset",
            "data.source=hub",
        ),
        (
            "data.dataset_config",
            config.data.source != "hub",
            f"data.source = {config.data.source!r} reads no Hugging Face dataset",
            "data.source=hub",
        ),
    )
    for field, useless, rule, remedy in no_effect:
        section, _, key = field.partition(".")
        value = getattr(getattr(config, section), key)
        if useless and field in explicit and value is not None:  # unsetting it by hand is no contradiction
            fix = f"Leave {field} out, or add --set {remedy}."
            yield (
                Problem(field, value, f"{rule}, so this would have no effect", fix),
                (field, remedy.partition("=")[0]),
            )


def _heads(model: ModelConfig) -> Iterator[Finding]:
    d, h, k = model.d_model, model.n_heads, model.n_kv_heads
    if d % h:
        yield (
            Problem(
                "model.n_heads",
                h,
                f"d_model ({d}) must be divisible by n_heads",
                f"Use one of {_divisors(d, h)}.",
            ),
            ("model.d_model", "model.n_heads"),
        )
    elif model.head_dim % 2:
        yield (
            Problem(
                "model.n_heads",
                h,
                f"head_dim (d_model / n_heads = {model.head_dim}) must be even: rotary positions turn pairs",
                "Change d_model or n_heads.",
            ),
            ("model.d_model", "model.n_heads"),
        )
    if h % k:
        yield (
            Problem(
                "model.n_kv_heads",
                k,
                f"n_heads ({h}) must be divisible by n_kv_heads",
                f"Use one of {_divisors(h, k)}.",
            ),
            ("model.n_heads", "model.n_kv_heads"),
        )


def _divisors(n: int, near: int) -> str:
    divisors = [i for i in range(1, n + 1) if n % i == 0]
    closest = sorted(sorted(divisors, key=lambda i: (abs(i - near), i))[:3])
    return ", ".join(map(str, closest))


def _ranks(model: ModelConfig) -> Iterator[Finding]:
    """§2.2: r < min(d_in, d_out), of the whole layer. Reported once, with every layer that breaks it."""
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
    if wrong:
        limit = min(min(shape) for shape in shapes.values())
        fix = f"Set model.rank below {limit}." if limit > 1 else "Widen the model."
        rule = "the rank must be below both sides of a layer, but " + "; ".join(wrong)
        sizes = ("d_model", "n_heads", "n_kv_heads", "d_ff", "vocab_size", "rank")
        yield Problem("model.rank", model.rank, rule, fix), tuple(f"model.{s}" for s in sizes)


def _variants(config: RunConfig) -> Iterator[Finding]:
    model = config.model
    if model.fan == "qkv" and model.linear == "dense":
        yield (
            Problem(
                "model.fan",
                "qkv",
                "CoLA_FAN is a low-rank layer",
                "Set model.linear=cola or model.fan=input.",
            ),
            ("model.fan", "model.linear"),
        )
    if model.fan != "none" and model.fan_ratio > 0 and int(_narrowest_fan(model) * model.fan_ratio) == 0:
        yield (
            Problem(
                "model.fan_ratio",
                model.fan_ratio,
                f"int(width · fan_ratio) is 0 for a layer of width {_narrowest_fan(model)}: it would have no features",
                "Raise it, or set model.fan=none.",
            ),
            ("model.fan_ratio", "model.d_model", "model.n_kv_heads", "model.n_heads"),
        )
    if model.fan != "qkv" and model.fan_dropout > 0:
        yield (
            Problem(
                "model.fan_dropout",
                model.fan_dropout,
                "only CoLA_FAN (model.fan = 'qkv') has this dropout",
                "Set it to 0.",
            ),
            ("model.fan", "model.fan_dropout"),
        )
    deepest = model.fan_dropout * (1 + model.fan_dropout_growth * (model.n_layers - 1))
    if deepest >= 1:
        yield (
            Problem(
                "model.fan_dropout_growth",
                model.fan_dropout_growth,
                f"the last block would drop {deepest:.2f}",
                "Lower it.",
            ),
            ("model.fan_dropout", "model.fan_dropout_growth", "model.n_layers"),
        )
    if model.fan_dropout_growth > 0 and model.fan_dropout == 0:
        yield (
            Problem(
                "model.fan_dropout_growth",
                model.fan_dropout_growth,
                "fan_dropout is 0",
                "Set model.fan_dropout too.",
            ),
            ("model.fan_dropout", "model.fan_dropout_growth"),
        )
    if model.norm in ("hybrid", "listing") and model.qkv_norm == "none":
        yield (
            Problem("model.qkv_norm", "none", f"{model.norm} norm normalises Q, K and V (eq. 3)", "Use rms or l2."),
            ("model.norm", "model.qkv_norm"),
        )
    if model.remat == "cola_m" and model.linear == "dense":
        yield (
            Problem(
                "model.remat",
                "cola_m",
                "CoLA-M keeps low-rank activations; dense layers have none",
                "Set model.remat=none.",
            ),
            ("model.remat", "model.linear"),
        )
    if config.train.device == "cpu" and model.attention == "flash":
        yield (
            Problem(
                "model.attention",
                "flash",
                "flash-attn runs on CUDA only (train.device = 'cpu')",
                "Use auto or sdpa.",
            ),
            ("model.attention", "train.device"),
        )


def _narrowest_fan(model: ModelConfig) -> int:
    return model.kv_width if model.fan == "qkv" else model.d_model


def _data(config: RunConfig) -> Iterator[Finding]:
    data = config.data
    needed = {"files": "path", "hub": "dataset"}
    for source, field in needed.items():
        value = getattr(data, field)
        if data.source == source and not value:
            fix = "Give --data PATH." if source == "files" else "Set data.dataset to a Hugging Face dataset's name."
            yield (
                Problem(f"data.{field}", value, f"data.source = {source!r} needs it", fix),
                ("data.source", f"data.{field}"),
            )
    if data.path is not None and data.source != "files":
        fix = "Give --data PATH, which sets both, or set data.source=files."
        yield (
            Problem("data.path", data.path, f"data.source = {data.source!r} does not read it", fix),
            ("data.source", "data.path"),
        )


def _batches(config: RunConfig) -> Iterator[Finding]:
    batch, micro = config.train.batch_size, config.train.effective_micro_batch_size
    if batch % micro:
        yield (
            Problem(
                "train.micro_batch_size",
                micro,
                f"batch_size ({batch}) must be divisible by micro_batch_size",
                f"Use one of {_divisors(batch, micro)}.",
            ),
            ("train.batch_size", "train.micro_batch_size"),
        )
