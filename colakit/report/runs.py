"""What `train` and `eval` show: tables over their records."""

from rich.table import Table
from rich.text import Text

from colakit.records.run import OptimizerPart, ResumeProof, RunListing, RunSummary
from colakit.report.tables import add_name_column, add_number_column, new_table
from colakit.units import human_count


def summary_table(summary: RunSummary) -> Table:
    """What a run reached, figure by figure."""
    table = figures_table("interrupted run" if summary.interrupted else "run")
    rows = {
        "preset": summary.preset,
        "folder": summary.run_dir,
        "parameters": f"{summary.parameters:,} ({human_count(summary.parameters)})",
        **({} if summary.processes == 1 else {"processes": f"{summary.processes}, {summary.strategy}"}),
        "steps": f"{summary.steps:,}" + (f", {summary.nan_count} skipped" if summary.nan_count else ""),
        "first loss": f"{summary.first_loss:.4f} nats/token",
        "last loss": f"{summary.last_loss:.4f} nats/token",
        "validation loss": f"{summary.val_loss:.4f} nats/token",
        "bits per byte": figure(summary.bits_per_byte, "{:.3f}"),
        "gzip -9, same text": figure(summary.gzip_bits_per_byte, "{:.3f}"),
        "accuracy": f"{summary.accuracy:.3f}",
        "tokens seen": f"{summary.tokens_seen:,}",
        "time": f"{summary.train_s:.1f} s ({summary.tokens_per_s:,.0f} tokens/s in training steps)",
        "data wait": f"{100 * summary.data_wait_frac:.2f} % of the steps' time",
        "epochs": ", ".join(
            f"{e:.3g}" if len(summary.epochs) == 1 else f"{n} {e:.3g}" for n, e in summary.epochs.items()
        ),
        "optimizer": _parts(summary.optimizer),
        "data": summary.data_fingerprint,
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def runs_table(listings: list[RunListing]) -> Table:
    """Runs, one a row."""
    table = new_table("runs")
    add_name_column(table, "folder")
    add_name_column(table, "preset")
    for column in ("step", "of", "last loss"):
        add_number_column(table, column)
    add_name_column(table, "state")
    add_name_column(table, "to go on")
    for r in listings:
        loss = figure(r.last_loss, "{:.4f}")
        table.add_row(r.folder, r.preset, f"{r.steps:,}", f"{r.max_steps:,}", loss, r.state, r.resume or "")
    return table


def proof_table(proof: ResumeProof) -> Table:
    """What was equal."""
    table = figures_table(f"{proof.preset} on {proof.device}: killed after step {proof.killed_after}, resumed")
    rows = {
        "weights": proof.weights,
        "optimizer state": proof.optimizer,
        "generators, data position": proof.state,
        "losses, gradient norms": proof.losses,
    }
    for name, equal in rows.items():
        table.add_row(name, "equal, byte for byte" if equal else "DIFFERENT")
    return table


def proof_verdict(proof: ResumeProof) -> str:
    """In a sentence."""
    if proof.is_exact:
        return f"Resuming is exact here: step {proof.steps} is the one of an undisturbed run ({proof.seconds:.0f} s)."
    return (
        f"Resuming is NOT exact here: step {proof.steps} differs from the one of an undisturbed run. On a GPU, try "
        "--set train.deterministic=true."
    )


def _parts(parts: tuple[OptimizerPart, ...]) -> str:
    names = {"muon": "Muon", "adamw": "AdamW"}
    shown = [f"{names[p.name]} {p.ms:.1f} ms" + (f" ({p.flops / 1e9:,.3g} GFLOP)" if p.flops else "") for p in parts]
    return f"{', '.join(shown)} a step" if shown else "n/a"


def sample_text(summary: RunSummary) -> Text:
    """The held-out prompt, and the model's continuation. Control characters, which a terminal obeys, are shown."""
    prompt, sample = (visible(text) for text in (summary.prompt, summary.sample))
    return Text.assemble(("prompt\n", "bold"), prompt, ("\nsample\n", "bold"), sample)


def visible(text: str) -> str:
    """`text` with control characters, which a terminal obeys, spelled out."""
    return "".join(c if c in "\n\t" or c.isprintable() else repr(c)[1:-1] for c in text)


def figures_table(title: str) -> Table:
    """A table of two columns: what, and how much."""
    table = new_table(title)
    table.show_header = False
    add_name_column(table, "")
    add_name_column(table, "")
    return table


def figure(value: float | None, pattern: str) -> str:
    """A figure in `pattern`, or ``n/a`` where it could not be had."""
    return "n/a" if value is None else pattern.format(value)
