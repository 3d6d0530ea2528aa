"""Parameters, the listing's attention, and memory, against what the printed sizes allow."""

import math
from collections.abc import Iterator

from colakit.analysis.contradictions.card import MEMORY_GB, USABLE_FRAC
from colakit.analysis.contradictions.presets import config
from colakit.analysis.contradictions.printed import Interval, Printed
from colakit.analysis.contradictions.record import Contradiction, references, show
from colakit.paper.text_method import L2_NORM


def check_sizes(printed: Printed) -> Iterator[Contradiction]:
    """All checks of counts and memory outside Table 7."""
    yield from _cola_twice(printed)
    yield from _parameters_per_entry(printed)
    yield from _listing_norm(printed)
    yield from _vram_twice(printed)
    yield from _room_for_more(printed)
    yield from _fan_ratio_range(printed)


def _cola_twice(printed: Printed) -> Iterator[Contradiction]:
    table = printed.of_preset("cola", "Table 4", "parameters")
    text = printed["§5.1", "CoLA with Phi-4's tokenizer", "Params."]
    if Interval.of(table).meets(Interval.of(text)):
        return
    apart = 100 * (table.value / text.value - 1)
    yield Contradiction(
        "cola-parameters-twice",
        references(table, text),
        (),
        (("difference, %", apart),),
        f"CoLA has {table.value:g}M parameters in Table 4 and {text.value:g}M in §5.1",
        f"one model, {apart:.1f} % apart",
    )


def _parameters_per_entry(printed: Printed) -> Iterator[Contradiction]:
    """Between CoLA and CoLA + SmolLM2 only the vocabulary changes: rows of the embedding and of the output."""
    phi, smol = printed["§5.1", "Phi-4", "tokens"], printed["§5.1", "SmolLM2-135M-Instruct", "tokens"]
    small = printed.of_preset("cola-smollm2", "Table 4", "parameters")
    entries = phi.value - smol.value
    if entries <= 0:
        return
    d, r = config("cola").model.d_model, config("cola").model.rank_of(config("cola").model.d_model)
    possible = {"tied": d, f"rank {r} with a bias": d + r + 1, "dense and untied": 2 * d}
    for place, large in (
        ("table4", printed.of_preset("cola", "Table 4", "parameters")),
        ("text", printed["§5.1", "CoLA with Phi-4's tokenizer", "Params."]),
    ):
        each = Interval.of(large).minus(Interval.of(small)).times(1e6 / entries)
        if any(each.meets(Interval(count, count)) for count in possible.values()):
            continue
        implied = (large.value - small.value) * 1e6 / entries
        yield Contradiction(
            f"cola-parameters-per-entry-{place}",
            references(large),
            references(small, phi, smol),
            (("parameters per vocabulary entry", implied), *((name, float(n)) for name, n in possible.items())),
            f"CoLA's {large.value:g}M implies {show(implied)} parameters per vocabulary entry, as no output layer has",
            f"from CoLA to CoLA + SmolLM2 only the vocabulary changes, and "
            f"({large.value:g}M − {small.value:g}M) / ({phi.printed} − {smol.printed}) is {show(implied)}; an "
            f"embedding of {d} and its output layer have "
            + ", ".join(f"{show(count)} ({name})" for name, count in possible.items()),
        )


def _listing_norm(printed: Printed) -> Iterator[Contradiction]:
    """Unit queries and keys bound each logit by 1/√d_k; with RMSNorm, of length √d_k, the bound is √d_k."""
    listing = printed.words(("§2.1.1", "listing", "norm of Q, K and V"))
    equation = printed.words(("§2.1.1", "eq. 3", "norm of Q, K and V"))
    positions = printed["Table 7", "caption", "seq_len"]
    n_heads, d_k = config("cola").model.n_heads, config("cola").model.head_dim
    bound = 1 / math.sqrt(d_k) if listing.value == L2_NORM else math.sqrt(d_k)
    ratio = math.exp(2 * bound)
    weight = ratio / (ratio + positions.value - 1)
    if weight >= 0.5:
        return
    yield Contradiction(
        "listing-l2-norm",
        references(listing),
        references(equation, positions),
        (
            ("largest logit", bound),
            ("largest ratio of two attention weights", ratio),
            ("largest weight", weight),
            ("largest logit with RMSNorm", math.sqrt(d_k)),
        ),
        f"With the listing's L2 norm no attention weight can exceed {ratio:.2f} times another",
        f"unit queries and keys of width {d_k} ({n_heads} heads; the paper prints no number) bound the logits to "
        f"±{bound:.3f}, so that one of {show(positions.value)} positions gets at most {100 * weight:.2f} % of the "
        f"attention ({100 / positions.value:.2f} % if uniform); RMSNorm would allow ±{math.sqrt(d_k):.0f}",
    )


def _vram_twice(printed: Printed) -> Iterator[Contradiction]:
    text = printed["§2.3.4", "CoLA_FAN with dropout", "VRAM before"]
    table = printed.of_preset("cola-fan", "Table 4", "vram")
    after = printed.of_preset("cola-fan-dropout", "Table 4", "vram")
    if Interval.of(text).meets(Interval.of(table)):
        return
    added = [100 * (after.value / before.value - 1) for before in (table, text)]
    yield Contradiction(
        "vram-before-dropout",
        references(text, table),
        references(after),
        (("added from Table 4, %", added[0]), ("added from §2.3.4, %", added[1])),
        f"CoLA_FAN without dropout takes {text.printed} GB in §2.3.4 and {table.printed} GB in Table 4",
        f"dropout's {after.printed} GB is {added[1]:.1f} % more than the one and {added[0]:.1f} % more than the other",
    )


def _room_for_more(printed: Printed) -> Iterator[Contradiction]:
    """One sequence more costs at most its share of what a whole batch takes."""
    batch = printed["Table 5", "caption", "batch size"]
    usable = USABLE_FRAC * MEMORY_GB
    for largest in printed.numbers("Table 5", "largest_batch"):
        vram = printed["Table 5", largest.row, "VRAM (GB)"]
        fits = math.floor(usable / (Interval.of(vram).high / batch.value))
        if fits <= largest.value:
            continue
        next_one = vram.value * (largest.value + 1) / batch.value
        yield Contradiction(
            f"largest-batch-{largest.preset}",
            references(largest),
            references(vram, batch),
            (("sequences that fit", float(fits)), ("GB at one more", next_one)),
            f"Table 5's largest batch of {largest.printed} for {largest.row} leaves room on a {MEMORY_GB:.0f} GB card",
            f"{vram.printed} GB at batch {show(batch.value)} is at most {vram.value / batch.value:.2f} GB "
            f"per sequence, so {fits} fit in {usable:.1f} GB ({100 * USABLE_FRAC:.0f} % of the card)",
        )


def _fan_ratio_range(printed: Printed) -> Iterator[Contradiction]:
    short = [printed["§2.3.2", "FAN ratio p", f"{end}, by model size"] for end in ("least", "most")]
    long = printed.numbers("§2.3.5", "setting")
    ends = [min(long, key=lambda c: c.value), max(long, key=lambda c: c.value)]
    wrong = [(a, b) for a, b in zip(short, ends, strict=True) if a.value != b.value]
    if wrong:
        yield Contradiction(
            "fan-ratio-range",
            references(*(c for pair in wrong for c in pair)),
            (),
            tuple((f"§2.3.5 − §2.3.2, {a.column}", b.value - a.value) for a, b in wrong),
            f"FAN ratio p by model size runs {short[0].printed} to {short[1].printed} in §2.3.2, "
            f"{ends[0].printed} to {ends[1].printed} in §2.3.5",
            ", ".join(f"{b.row} has {b.printed} against {a.printed}" for a, b in wrong),
        )
