"""Tables over prepared data: what was counted, how long documents are, how a run mixes the sources."""

from collections.abc import Callable

from rich.table import Table
from rich.text import Text

from colakit.records.data import DataRecord, SourceRecord
from colakit.report.runs import visible
from colakit.report.tables import add_name_column, add_number_column, new_table

_BAR_WIDTH = 30
_MOST_BAD = 10


def sources_table(record: DataRecord) -> Table:
    """A column for each source, a row for each count."""
    table = new_table(f"data of {record.preset}: {record.packing}, seq_len {record.seq_len}, {record.tokenizer}")
    add_name_column(table, "")
    for source in record.sources:
        add_number_column(table, source.name)
    rows: dict[str, Callable[[SourceRecord], str]] = {
        "training documents": lambda s: f"{s.documents:,}",
        "held-out documents": lambda s: f"{s.held_out_documents:,}",
        "dropped: held-out text": lambda s: f"{s.dropped_documents:,}",
        "dropped: too short": lambda s: f"{s.short_documents:,}",
        "dropped: bad records": lambda s: f"{s.bad_records:,}",
        "bytes of text": lambda s: f"{s.text_bytes:,}",
        "training tokens": lambda s: f"{s.train_tokens:,}",
        "held-out tokens": lambda s: f"{s.held_out_tokens:,}",
        "bytes per token": lambda s: f"{s.bytes_per_token:.3f}",
        "tokens per document": lambda s: f"{s.mean_tokens:,.1f}",
        "median, longest": lambda s: f"{s.median_tokens:,}, {s.longest_tokens:,}",
        "training blocks": lambda s: f"{s.train_blocks:,}",
        "held-out blocks": lambda s: f"{s.held_out_blocks:,}",
        "padding": lambda s: f"{100 * s.padding_frac:.2f} %",
        "cut off": lambda s: f"{100 * s.cut_frac:.2f} %",
    }
    for name, shown in rows.items():
        table.add_row(name, *(shown(source) for source in record.sources))
    return table


def stages_table(record: DataRecord) -> Table:
    """Blocks of each source by stage, and how often it has been read through at the stage's end."""
    table = new_table("stages of a run: blocks by source (epochs at the stage's end)")
    for column in ("stage", "first block", "end", *(source.name for source in record.sources)):
        add_number_column(table, column)
    for number, stage in enumerate(record.stages, 1):
        total = max(1, stage.end - stage.begin)
        cells = [
            f"{blocks:,} = {100 * blocks / total:.1f} % ({stage.epochs[name]:.3g})"
            for name, blocks in stage.blocks.items()
        ]
        table.add_row(str(number), f"{stage.begin:,}", f"{stage.end:,}", *cells)
    return table


def lengths_table(source: SourceRecord) -> Table:
    """Documents by length, in bins that double."""
    table = new_table(f"{source.name}: documents by length, training and held-out")
    for column in ("tokens", "documents", "tokens in all"):
        add_number_column(table, column)
    add_name_column(table, "")
    most = max(length_bin.documents for length_bin in source.lengths)
    for length_bin in source.lengths:
        bar = "█" * round(_BAR_WIDTH * length_bin.documents / most)
        span = f"{length_bin.at_least:,} … {length_bin.below - 1:,}"
        table.add_row(span, f"{length_bin.documents:,}", f"{length_bin.tokens:,}", bar)
    return table


def samples_text(record: DataRecord) -> Text:
    """The beginnings of some documents, decoded from their tokens."""
    parts: list[str | tuple[str, str]] = []
    for source in record.sources:
        for sample in source.samples:
            parts += [(f"{source.name}, {sample.side}, {sample.tokens:,} tokens\n", "bold"), visible(sample.text), "\n"]
    return Text.assemble(*parts)


def bad_record_notes(record: DataRecord) -> list[str]:
    """The first records of each source that could not be read."""
    notes: list[str] = []
    for source in record.sources:
        notes += source.first_bad_records[:_MOST_BAD]
        if source.bad_records > _MOST_BAD:
            notes.append(f"{source.name}: {source.bad_records - _MOST_BAD:,} more; --json lists up to 1,000.")
    return notes
