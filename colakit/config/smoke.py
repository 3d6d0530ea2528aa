"""``--smoke``: the overlay that shrinks any preset to what two CPU cores train in about two minutes, keeping its kind.

Only sizes, lengths, the learning rate and data from the hub change. Which layers, norms, dropouts and optimizer a
preset has stays as it is, so a smoke run exercises the code of the real one; so do local files.
"""

from typing import Any

from colakit.config.schema import DataConfig, RunConfig, SourceConfig

_MODEL = {"n_layers": 4, "d_ff": 704, "vocab_size": 4096, "seq_len": 256}
_WIDTH = {"d_model": 256, "n_heads": 4, "n_kv_heads": 2}
_RANK = 64
UNCLEANED: dict[str, Any] = {"remove_urls": False, "remove_crawl_markers": False, "min_words": 0}
"""How text is read that was not crawled."""

_TRAIN = {"max_steps": 300, "batch_size": 8, "eval_every": 60, "eval_tokens": 32_768}


def overlay(config: RunConfig) -> dict[str, dict[str, Any]]:  # Any: TOML values
    """The values ``--smoke`` puts over the preset's `config`. What is smaller already stays."""
    model, muon = config.model, config.optim.optimizer == "muon"
    return {
        "model": {
            **{name: min(size, getattr(model, name)) for name, size in _MODEL.items()},
            **(_WIDTH if model.d_model > _WIDTH["d_model"] else {}),
            **({"rank": min(_RANK, model.rank)} if model.rank is not None else {}),
        },
        "optim": {"lr": 8e-3 if muon else 2e-3, "warmup_steps": 20},
        "data": {**_at_hand(config.data), "tokenizer": "bpe", "val_fraction": 0.04},
        "train": {
            **{name: min(size, getattr(config.train, name)) for name, size in _TRAIN.items()},
            "micro_batch_size": None,
            "compile": False,
        },
    }


def _at_hand(data: DataConfig) -> dict[str, Any]:  # Any: TOML values
    """The same sources, with the standard library in place of what the hub has; a mixture gets a part for each."""
    if not data.sources:
        return {} if data.source == "files" else {**SourceConfig().model_dump(), **UNCLEANED}
    from_hub = [name for name, source in data.sources.items() if source.source == "hub"]
    parts = {name: {"source": "stdlib", "part": f"{i}/{len(from_hub)}"} for i, name in enumerate(from_hub, 1)}
    return {
        "sources": {name: parts.get(name) or source.model_dump() for name, source in data.sources.items()},
        **(UNCLEANED if from_hub else {}),
    }
