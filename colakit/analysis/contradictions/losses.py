"""Losses that are compared where they cannot be, or printed twice with two values."""

import itertools
import math
from collections.abc import Iterator

from colakit.analysis.contradictions.presets import config, differ_by_optimizer, uses_muon
from colakit.analysis.contradictions.printed import Interval, Printed
from colakit.analysis.contradictions.record import Contradiction, place, references, show, spread
from colakit.paper.claims import Claim

_V10, _V11 = "AdamW (version 10)", "Muon (version 11)"
_REDUCTIONS = ("loss reduction, Figure 8", "training loss reduction, Figure 9")


def check_losses(printed: Printed) -> Iterator[Contradiction]:
    """All checks of losses but Table 3's."""
    yield from _across_tokenizers(printed)
    yield from _two_ends_of_one_run(printed)
    yield from _two_reductions_of_one_run(printed)
    yield from _starting_losses(printed)
    yield from _figure_9(printed)


def _across_tokenizers(printed: Printed) -> Iterator[Contradiction]:
    phi, smol = printed["§5.1", "Phi-4", "tokens"], printed["§5.1", "SmolLM2-135M-Instruct", "tokens"]
    losses = printed.numbers("Table 4", "loss")
    if phi.value == smol.value:
        return
    shift = math.log(phi.value / smol.value)
    tokenizer = {c: config(c.preset).data.tokenizer for c in losses}
    across = [abs(a.value - b.value) for a, b in itertools.combinations(losses, 2) if tokenizer[a] != tokenizer[b]]
    yield Contradiction(
        "losses-across-tokenizers",
        references(*losses),
        references(phi, smol),
        (("nats between two uniform guesses", shift), ("largest difference across tokenizers", max(across))),
        f"Table 4 compares nats per token over two vocabularies, {phi.printed} and {smol.printed} tokens",
        f"a uniform guess alone differs by ln({phi.printed} / {smol.printed}) = {shift:.2f} nats per token, "
        f"the losses across the two by {spread([round(d, 2) for d in across])}; bits per byte would be comparable",
    )


def _two_ends_of_one_run(printed: Printed) -> Iterator[Contradiction]:
    refined = printed["§6.2.4", "unrefined", "Validation loss"]
    ddp = printed["§5.9", "CoLA_FAN, progressive dropout", "validation loss, end"]
    examples = [
        printed["§6.2.4", "unrefined", "examples"],
        printed["§5.9", "CoLA_FAN, progressive dropout", "examples"],
    ]
    if examples[0].value != examples[1].value or Interval.of(refined).meets(Interval.of(ddp)):
        return
    yield Contradiction(
        "loss-of-the-long-run",
        references(refined, ddp),
        references(*examples),
        (("difference", ddp.value - refined.value),),
        f"The run of {examples[0].printed} examples ends at {refined.printed} in §6 and at {ddp.printed} in §5.9",
        f"the two validation losses differ by {ddp.value - refined.value:.4f}",
    )


def _two_reductions_of_one_run(printed: Printed) -> Iterator[Contradiction]:
    for run in (_V10, _V11):
        eight = printed["§5.7", run, "loss reduction, Figure 8"]
        nine = printed["§5.7", run, "training loss reduction, Figure 9"]
        if Interval.of(eight).meets(Interval.of(nine)):
            continue
        yield Contradiction(
            f"loss-reduction-{run.split()[0].lower()}",
            references(eight, nine),
            (),
            (("difference in points", nine.value - eight.value),),
            f"One run of {run} lowers its loss by {eight.printed} in Figure 8 and by {nine.printed} in Figure 9",
            f"the two differ by {show(nine.value - eight.value)} points",
        )


def _starting_losses(printed: Printed) -> Iterator[Contradiction]:
    """Two runs of one model start at one loss: end / (1 − reduction) must agree.

    The ends are validation losses and the reductions the training loss's: as far apart as the text's largest gap.
    """
    gaps = printed.numbers("§5.9", "loss_gap")
    gap = max(Interval.of(claim).high for claim in gaps)
    starts: dict[str, Interval] = {}
    used: list[Claim] = []
    for run in (_V10, _V11):
        end = printed["§5.7", run, "final validation loss"]
        reductions = [printed["§5.7", run, name] for name in _REDUCTIONS]
        used += [end, *reductions]
        ends = [end.value / (1 - reduction.value / 100) for reduction in reductions]
        low = (Interval.of(end).low - gap) / (1 - min(Interval.of(r).low for r in reductions) / 100)
        high = (Interval.of(end).high + gap) / (1 - max(Interval.of(r).high for r in reductions) / 100)
        starts[run] = Interval(low, high)
        starts[f"{run} printed"] = Interval(min(ends), max(ends))
    if starts[_V10].meets(starts[_V11]):
        return
    adamw, muon = starts[f"{_V10} printed"], starts[f"{_V11} printed"]
    yield Contradiction(
        "loss-reductions-and-ends",
        references(*used),
        references(*gaps),
        (
            ("AdamW's start, least", adamw.low),
            ("AdamW's start, most", adamw.high),
            ("Muon's start, least", muon.low),
            ("Muon's start, most", muon.high),
        ),
        "The printed loss reductions and final losses of AdamW and Muon imply two different starting losses",
        f"end / (1 − reduction) is {adamw.low:.2f} to {adamw.high:.2f} for AdamW and {muon.low:.2f} to {muon.high:.2f} "
        f"for Muon, on one model; the ends are validation losses, within {gap:.2f} of the training loss in §5.9",
    )


def _figure_9(printed: Printed) -> Iterator[Contradiction]:
    """Where Figure 9's Muon run is a row of Table 4, its AdamW run is that row without Muon."""
    adamw, muon = (printed["§5.7", run, "final validation loss"] for run in (_V10, _V11))
    losses = printed.numbers("Table 4", "loss")
    twin = next((c for c in losses if uses_muon(c.preset) and c.value == muon.value), None)
    if twin is None:
        return
    row = next(c for c in losses if differ_by_optimizer(c.preset, twin.preset))
    if Interval.of(row).meets(Interval.of(adamw)) and row.value == adamw.value:
        return
    yield Contradiction(
        "figure-9-against-table-4",
        references(adamw),
        references(muon, twin, row),
        (("Figure 9's gain", adamw.value - muon.value), ("Table 4's gain", row.value - twin.value)),
        f"Figure 9 sets Muon's {muon.printed} against {adamw.printed} with AdamW, Table 4 against {row.printed}",
        f"Muon's {twin.printed} is {place(twin)}; its twin without Muon has {row.printed}, so that Muon gains "
        f"{row.value - twin.value:.2f} instead of {adamw.value - muon.value:.2f}",
    )
