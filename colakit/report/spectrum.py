"""What `colakit eval --spectrum` shows: effective ranks of activations, beside the ranks of layers that read them."""

from rich.table import Table

from colakit.records.spectrum import Place, SpectrumRecord
from colakit.report.tables import add_name_column, add_number_column, new_table

PLACE_NAMES: dict[Place, str] = {
    "attention_input": "what Q, K, V read",
    "mlp_input": "what gate, up read",
    "mlp_hidden": "what down reads",
}


def spectrum_table(record: SpectrumRecord) -> Table:
    """One place of one block a row."""
    table = new_table(spectrum_title(record))
    add_number_column(table, "block")
    add_name_column(table, "activations")
    for header in ("effective rank", "of", "share", "layer's rank"):
        add_number_column(table, header)
    for p in record.places:
        share = f"{100 * p.effective_rank / p.width:.1f} %"
        rank = "dense" if p.layer_rank is None else f"{p.layer_rank:,}"
        table.add_row(str(p.block), PLACE_NAMES[p.place], f"{p.effective_rank:,}", f"{p.width:,}", share, rank)
    return table


def spectrum_notes(record: SpectrumRecord) -> list[str]:
    """What the figures mean, and what the paper says of them."""
    widest = max(p.width for p in record.places)
    notes = [
        "Effective rank: the fewest singular values whose squares sum to "
        f"{100 * record.energy_frac:g} % of all squares; activations are not centred.",
        f"Over {record.tokens:,} tokens, {record.tokens / widest:.1f} for each of the {widest:,} dimensions of the "
        "widest place: with few, ranks come out too low.",
        "The paper's claim (§2.2, Figure 3): singular values fall fast, so activations are of low rank in every "
        "block, and layers of rank d/4 are a good balance. It prints no rank, and does not say which activations.",
    ]
    ranks = [(p.effective_rank, p.layer_rank) for p in record.places if p.layer_rank is not None]
    if ranks:
        above = sum(effective > layer for effective, layer in ranks)
        notes.insert(2, f"In {above} of {len(ranks)} places the effective rank is above that of the layer that reads.")
    return notes


def spectrum_title(record: SpectrumRecord) -> str:
    """What was measured, of which model."""
    step = "" if record.step is None else f", step {record.step:,}"
    return f"{record.preset}{step}: effective rank at {100 * record.energy_frac:g} % of the energy"
