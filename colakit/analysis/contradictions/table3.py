"""Table 3 against the card, against Tables 4 and 5, and against itself."""

from collections.abc import Iterator

from colakit.analysis.contradictions.card import PEAK_TFLOP_PER_S
from colakit.analysis.contradictions.presets import CHEAPEST_PRESET, training_flops_per_token, uses_muon
from colakit.analysis.contradictions.printed import Interval, Printed
from colakit.analysis.contradictions.record import Contradiction, references, show, spread
from colakit.paper.claims import Claim

_OPTIMIZERS = ("AdamW", "Muon")


def check_table_3(printed: Printed) -> Iterator[Contradiction]:
    """All checks of Table 3."""
    yield from _over_peak(printed)
    yield from _over_largest_batch(printed)
    yield from _against_table_4_speed(printed)
    yield from _muon_cost(printed)
    yield from _step_time(printed)
    yield from _against_table_4_loss(printed)


def _batch(printed: Printed, claim: Claim) -> Claim:
    return printed["Table 3", claim.row, "batch size"]


def _over_peak(printed: Printed) -> Iterator[Contradiction]:
    seq_len = printed["Table 7", "caption", "seq_len"]
    per_token = training_flops_per_token(CHEAPEST_PRESET)
    implied = {
        claim: claim.value * seq_len.value * per_token / 1e12 for claim in printed.numbers("Table 3", "examples_per_s")
    }
    over = {claim: tflops for claim, tflops in implied.items() if tflops > PEAK_TFLOP_PER_S}
    if not over:
        return
    fastest = max(over, key=lambda claim: over[claim])
    yield Contradiction(
        "table3-over-peak",
        references(*over),
        references(seq_len),
        (
            ("FLOPs per token", per_token),
            ("peak TFLOP/s", PEAK_TFLOP_PER_S),
            *((f"TFLOP/s, {c.column} at {c.row}", tflops) for c, tflops in over.items()),
        ),
        f"{len(over)} speeds of Table 3 exceed an RTX 4090's peak of {PEAK_TFLOP_PER_S} TFLOP/s",
        f"at {show(seq_len.value)} tokens per sequence, {fastest.printed} examples/s is "
        f"{show(fastest.value * seq_len.value)} tokens/s, and at {per_token / 1e6:.0f} MFLOP per token "
        f"({CHEAPEST_PRESET}, the cheapest row) {over[fastest]:.0f} TFLOP/s; "
        f"the {len(over)} need {spread([round(t) for t in over.values()])} TFLOP/s",
    )


def _over_largest_batch(printed: Printed) -> Iterator[Contradiction]:
    largest = printed.numbers("Table 5", "largest_batch")
    limit = max(claim.value for claim in largest)
    over = [claim for claim in printed.numbers("Table 3", "batch_size") if claim.value > limit]
    if not over:
        return
    sizes = " and ".join(show(claim.value) for claim in over)
    cola_m = printed["§5.5", "CoLA-M", "Max batch"]
    yield Contradiction(
        "table3-over-largest-batch",
        references(*over),
        references(*largest, cola_m),
        (("largest batch of Table 5", limit), *((claim.row, claim.value / limit) for claim in over)),
        f"Table 3 trains at batch {sizes}, where Table 5's largest batch of any system is {show(limit)}",
        f"{sizes} sequences are {' and '.join(show(claim.value / limit) for claim in over)} times that; "
        f"§5.5's {cola_m.printed} need CoLA-M, which Table 3 does not name",
    )


def _against_table_4_speed(printed: Printed) -> Iterator[Contradiction]:
    batch = printed["Table 5", "caption", "batch size"]
    for optimizer in _OPTIMIZERS:
        rows = [c for c in printed.numbers("Table 4", "it_per_s") if uses_muon(c.preset) == (optimizer == "Muon")]
        speeds = [c for c in printed.numbers("Table 3", "examples_per_s") if c.column == f"{optimizer} examples/s"]
        speed = next((c for c in speeds if _batch(printed, c).value == batch.value), None)
        fastest = max(rows, key=lambda c: c.value)
        if speed is None or Interval.of(speed).low <= Interval.of(fastest).high * batch.value:
            continue
        expected = fastest.value * batch.value
        yield Contradiction(
            f"table3-speed-{optimizer.lower()}",
            references(speed),
            references(fastest, batch),
            (("examples/s of Table 4's fastest row", expected), ("ratio", speed.value / expected)),
            f"Table 3 prints {speed.printed} examples/s with {optimizer} at batch {show(batch.value)}, "
            f"where Table 4's fastest row gives {expected:.1f}",
            f"{fastest.printed} it/s ({fastest.row}) × {show(batch.value)} is {expected:.1f}, "
            f"and Table 3 is {speed.value / expected:.2f} times as fast",
        )


def _muon_cost(printed: Printed) -> Iterator[Contradiction]:
    cost = printed["§5.4", "Muon against AdamW", "it/s lost"]
    batch = printed["Table 5", "caption", "batch size"]
    for claim in printed.numbers("Table 3", "batch_size"):
        if claim.value != batch.value:
            continue
        adamw, muon = (printed["Table 3", claim.row, f"{optimizer} examples/s"] for optimizer in _OPTIMIZERS)
        lost = 100 * (1 - muon.value / adamw.value)
        if Interval.of(cost).meets(Interval.of(muon).over(Interval.of(adamw)).times(-100).plus(100)):
            continue
        yield Contradiction(
            "muon-cost",
            references(muon, printed["Table 3", claim.row, "change of examples/s"], cost),
            references(adamw, batch),
            (("lost in Table 3, %", lost), ("lost in the text, %", cost.value)),
            f"Muon costs {lost:.1f} % of the speed at batch {show(batch.value)} in Table 3, {cost.printed} in §5.4",
            f"1 − {muon.printed} / {adamw.printed} is {lost:.1f} %",
        )


def _step_time(printed: Printed) -> Iterator[Contradiction]:
    """A step on more sequences, with the same optimizer, cannot be shorter."""
    for optimizer in _OPTIMIZERS:
        speeds = [c for c in printed.numbers("Table 3", "examples_per_s") if c.column == f"{optimizer} examples/s"]
        times = {c: Interval.of(_batch(printed, c)).over(Interval.of(c)) for c in speeds}
        small, large = speeds[0], speeds[-1]
        if times[large].high >= times[small].low:
            continue
        ms = {c: 1000 * _batch(printed, c).value / c.value for c in speeds}
        more = _batch(printed, large).value / _batch(printed, small).value
        yield Contradiction(
            f"table3-step-time-{optimizer.lower()}",
            references(*speeds),
            references(*(_batch(printed, c) for c in speeds)),
            tuple((f"ms per step, {c.row}", ms[c]) for c in speeds),
            f"A step with {optimizer} gets shorter in Table 3 as the batch grows",
            f"batch size over examples/s is {ms[small]:.0f} ms at {small.row} and {ms[large]:.0f} ms at {large.row}, "
            f"{show(more)} times the work",
        )


def _against_table_4_loss(printed: Printed) -> Iterator[Contradiction]:
    table_3, table_4 = (printed.numbers(table, "loss") for table in ("Table 3", "Table 4"))
    most, least = max(c.value for c in table_3), min(c.value for c in table_4)
    if Interval.of(max(table_3, key=lambda c: c.value)).high >= Interval.of(min(table_4, key=lambda c: c.value)).low:
        return
    ranges = [spread([c.value for c in claims]) for claims in (table_3, table_4)]
    yield Contradiction(
        "losses-table3-table4",
        references(*table_3, *table_4),
        (),
        (("gap in nats per token", least - most),),
        f"Table 3's losses ({ranges[0]}) and Table 4's ({ranges[1]}) are on different scales",
        f"Table 3's highest is {least - most:.2f} nats per token below Table 4's lowest",
    )
