"""The tables of ``colakit info``: what a folder is, its checkpoints, its tensors."""

import math

from rich.table import Table
from rich.text import Text

from colakit.records.info import InfoRecord, ModelShape, OptimizerInfo, TrainingInfo
from colakit.records.machine import MachineRecord
from colakit.report.runs import figure, visible
from colakit.report.tables import add_name_column, add_number_column, new_table
from colakit.units import human_count

_TITLES = {
    "run": "run",
    "checkpoint": "checkpoint",
    "export": "exported model",
    "transformers": "model for transformers",
}


def info_table(record: InfoRecord) -> Table:
    """What a folder is, row by row; ``n/a`` where it does not tell."""
    table = new_table(f"{_TITLES[record.what]} {visible(record.path)}")
    table.show_header = False
    add_name_column(table, "")
    add_name_column(table, "")
    for name, value in _rows(record).items():
        table.add_row(name, Text("n/a" if value is None else visible(value)))
    return table


def _rows(record: InfoRecord) -> dict[str, str | None]:
    """Every fact with its name; of a model that is not colakit's, what its files tell."""
    if record.what == "transformers":
        return {**_transformers_rows(record), **_weight_rows(record), "written": record.written}
    rows = {**_transformers_rows(record), "preset": record.preset, **_training_rows(record)}
    rows |= {**_model_rows(record.model or ModelShape()), **_weight_rows(record)}
    rows |= {"optimizer": _optimizer(record.optimizer), "data": _sources(record.sources)}
    rows |= {"fingerprint": record.data_fingerprint}
    if record.what != "export":
        rows |= _machine_rows(record.machine)
    return rows | {"written": record.written}


def _transformers_rows(record: InfoRecord) -> dict[str, str | None]:
    if record.model_type is None:
        return {}
    return {"model type": record.model_type, "architecture": ", ".join(record.architectures) or None}


def _weight_rows(record: InfoRecord) -> dict[str, str | None]:
    tokens = record.tokenizer_tokens
    return {
        "parameters": _parameters(record),
        "weights": ", ".join(sorted({tensor.dtype for tensor in record.tensors})) or "none saved yet",
        "tokenizer": record.tokenizer and record.tokenizer + (f", {tokens:,} tokens" if tokens is not None else ""),
    }


def _optimizer(o: OptimizerInfo | None) -> str | None:
    if o is None:
        return None
    return (
        f"{o.name}, lr {o.lr:g} after {o.warmup_steps:,} steps, weight decay {o.weight_decay:g}, batch {o.batch_size}"
    )


def _sources(sources: dict[str, str]) -> str | None:
    shown = (reads if len(sources) == 1 else f"{name} ({reads})" for name, reads in sources.items())
    return ", ".join(shown) or None


def _training_rows(record: InfoRecord) -> dict[str, str | None]:
    t = record.training or TrainingInfo(None, None)
    steps = f"step {figure(t.steps, '{:,}')} of {figure(t.max_steps, '{:,}')}"
    rows: dict[str, str | None] = {"state": f"{t.state}, {steps}" if t.state is not None else steps}
    if t.resume is not None:
        rows["to go on"] = t.resume
    if record.what == "export":
        return rows
    best = f"{t.best_loss:.4f} nats/token at step {t.best_step:,}" if t.best_loss is not None else None
    e = t.evaluation
    return {
        **rows,
        "last loss": None if t.last_loss is None else f"{t.last_loss:.4f} nats/token",
        "validation loss": None if e is None else f"{e.val_loss:.4f} nats/token at step {e.step:,}",
        "best of them": best,
        "time": None if t.train_s is None else f"{t.train_s:,.1f} s",
    }


def _model_rows(m: ModelShape) -> dict[str, str | None]:
    """Its kind and sizes."""
    count = "{:,}"
    rank = "d_in // 4" if m.rank is None else f"{m.rank:,}"
    fan = f"{m.fan} {figure(m.fan_ratio, '{:g}')}" if m.fan not in (None, "none") else m.fan or "n/a"
    tied = {None: "n/a", True: "tied", False: "its own"}[m.tie_embeddings]
    return {
        "layers": m.linear and (f"{m.linear}, rank {rank}" if m.linear == "cola" else m.linear),
        "fan": fan,
        "norm": f"{m.norm or 'n/a'}, of q, k, v: {m.qkv_norm or 'n/a'}",
        "sizes": (
            f"d_model {figure(m.d_model, count)}, {figure(m.n_layers, count)} blocks, {figure(m.n_heads, count)} heads "
            f"({figure(m.n_kv_heads, count)} of keys), d_ff {figure(m.d_ff, count)}"
        ),
        "vocabulary": f"{figure(m.vocab_size, count)}, head {tied}",
        "sequence": f"{figure(m.seq_len, count)} tokens",
    }


def _parameters(record: InfoRecord) -> str | None:
    found, expected = record.parameters, record.expected_parameters
    if found is None:
        return None if expected is None else f"{expected:,} ({human_count(expected)}) by its configuration"
    shown = f"{found:,} ({human_count(found)})"
    return shown if expected in (None, found) else f"{shown} in the file, but {expected:,} by its configuration"


def _machine_rows(m: MachineRecord | None) -> dict[str, str | None]:
    if m is None:
        return dict.fromkeys(("machine", "versions", "git commit"))
    versions = [f"{name} {m.packages[name]}" for name in ("colakit", "torch") if m.packages.get(name)]
    return {
        "machine": f"{m.gpu or m.cpu}, {m.platform}",
        "versions": ", ".join([*versions, f"Python {m.python}"]),
        "git commit": m.git_commit and m.git_commit + (", changed" if m.git_dirty else ""),
    }


def checkpoints_table(record: InfoRecord) -> Table:
    """Checkpoints, one a row."""
    table = new_table("checkpoints")
    add_number_column(table, "step")
    add_number_column(table, "MB")
    add_name_column(table, "files")
    add_name_column(table, "folder")
    for c in record.checkpoints:
        state = Text("of the sizes written" if c.fault is None else visible(c.fault))
        table.add_row(figure(c.step, "{:,}"), f"{c.n_bytes / 1e6:,.1f}", state, Text(visible(c.folder)))
    return table


def tensors_table(record: InfoRecord) -> Table:
    """Tensors, or groups of them, one a row."""
    table = new_table("tensors")
    add_name_column(table, "name")
    add_name_column(table, "dtype")
    for column in ("shape", "times", "parameters"):
        add_number_column(table, column)
    for t in record.tensors:
        size = t.count * math.prod(t.shape)
        table.add_row(Text(visible(t.name)), t.dtype, "×".join(map(str, t.shape)), f"{t.count:,}", f"{size:,}")
    return table
