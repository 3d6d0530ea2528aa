"""Printed percentages, ratios and differences, recomputed from the figures that they are about."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from colakit.analysis.contradictions.printed import Interval, Printed
from colakit.analysis.contradictions.record import Contradiction, place, references, show
from colakit.paper.claims import Reference

Kind = Literal["gain %", "loss %", "share %", "ratio", "difference"]
"""How `first` and `second` make the printed figure: % more than second, % less, % of it, over it, minus it."""

_DDP, _V20 = "CoLA_FAN, progressive dropout", "AdamW (version 20)"
_TIED, _UNTIED = "refined, tied", "refined, not tied"


_WORDS: dict[Kind, str] = {
    "gain %": "{} is that much more than {}",
    "loss %": "{} is that much less than {}",
    "share %": "{} is that share of {}",
    "ratio": "{} over {}",
    "difference": "{} minus {}",
}


@dataclass(frozen=True)
class Derived:
    """A printed figure that follows from two others."""

    identifier: str
    claim: Reference
    kind: Kind
    first: Reference
    second: Reference


def _interval(kind: Kind, first: Interval, second: Interval) -> Interval:
    match kind:
        case "gain %":
            return first.over(second).times(100).plus(-100)
        case "loss %":
            return first.over(second).times(-100).plus(100)
        case "share %":
            return first.over(second).times(100)
        case "ratio":
            return first.over(second)
        case "difference":
            return first.minus(second)


def _table_4_reductions(printed: Printed) -> Iterator[Derived]:
    original = printed.of_preset("original", "Table 4", "parameters").reference
    for claim in printed.numbers("Table 4", "change"):
        yield Derived(
            f"table4-reduction-{claim.preset}", claim.reference, "loss %", ("Table 4", claim.row, "Params."), original
        )


def _table_3_changes(printed: Printed) -> Iterator[Derived]:
    for batch in printed.numbers("Table 3", "batch_size"):
        for name, column in (("examples/s", "examples/s"), ("loss", "loss at 10k steps")):
            yield Derived(
                f"table3-change-{name.replace('/', '-')}-{batch.printed}",
                ("Table 3", batch.row, f"change of {name}"),
                "gain %",
                ("Table 3", batch.row, f"Muon {column}"),
                ("Table 3", batch.row, f"AdamW {column}"),
            )


def _speed(row: str) -> Reference:
    return "Table 4", row, "it/s"


_SMOL, _FAN = "CoLA + SmolLM2", "CoLA + FANformer + SmolLM2"

TEXT: tuple[Derived, ...] = (
    Derived(
        "fan-parameters",
        ("§2.3.4", "CoLA_FAN", "parameters added"),
        "gain %",
        ("Table 4", _FAN, "Params."),
        ("Table 4", _SMOL, "Params."),
    ),
    Derived(
        "fan-vram",
        ("§2.3.4", "CoLA_FAN without dropout", "VRAM added"),
        "difference",
        ("Table 4", _FAN, "VRAM (GB)"),
        ("Table 4", _SMOL, "VRAM (GB)"),
    ),
    Derived(
        "dropout-vram",
        ("§2.3.4", "CoLA_FAN with dropout", "VRAM added"),
        "gain %",
        ("§2.3.4", "CoLA_FAN with dropout", "VRAM after"),
        ("§2.3.4", "CoLA_FAN with dropout", "VRAM before"),
    ),
    Derived("fan-speed", ("§2.3.4", "CoLA_FAN without dropout", "it/s lost"), "loss %", _speed(_FAN), _speed(_SMOL)),
    Derived(
        "muon-state",
        ("§4.2", "Muon against AdamW", "optimizer state saved"),
        "loss %",
        ("Table 1", "memory required", "Muon"),
        ("Table 1", "memory required", "AdamW"),
    ),
    Derived(
        "tokenizer-parameters",
        ("§5.1", "SmolLM2's tokenizer", "parameters saved"),
        "loss %",
        ("§5.1", "CoLA with SmolLM2's tokenizer", "Params."),
        ("§5.1", "CoLA with Phi-4's tokenizer", "Params."),
    ),
    Derived(
        "speed-up", ("§5.4", "CoLA + SmolLM2 against Original", "speed"), "ratio", _speed(_SMOL), _speed("Original")
    ),
    Derived(
        "muon-speed", ("§5.4", "Muon against AdamW", "it/s lost"), "loss %", _speed(f"{_SMOL} + Muon"), _speed(_SMOL)
    ),
    Derived(
        "version-20-reduction",
        ("§5.7", _V20, "training loss reduction"),
        "loss %",
        ("§5.7", _V20, "training loss, end"),
        ("§5.7", _V20, "training loss, start"),
    ),
    Derived(
        "version-20-gap",
        ("§5.7", _V20, "validation gap"),
        "difference",
        ("§5.7", _V20, "validation loss"),
        ("§5.7", _V20, "training loss, end"),
    ),
    Derived(
        "fan-tokens-per-s",
        ("§5.7", "FANformer against CoLA+SmolLM2", "tokens/s lost"),
        "loss %",
        ("Table 7", "tokens/s", "FANformer+SmolLM2"),
        ("Table 7", "tokens/s", "CoLA+SmolLM2"),
    ),
    Derived(
        "muon-reduction",
        ("§5.8", "Muon against AdamW", "training loss reduction"),
        "ratio",
        ("§5.7", "Muon (version 11)", "training loss reduction, Figure 9"),
        ("§5.7", "AdamW (version 10)", "training loss reduction, Figure 9"),
    ),
    Derived(
        "ddp-training-loss",
        ("§5.9", _DDP, "training loss reduction"),
        "loss %",
        ("§5.9", _DDP, "training loss, end"),
        ("§5.9", _DDP, "training loss, start"),
    ),
    Derived(
        "ddp-accuracy",
        ("§5.9", _DDP, "validation accuracy gain"),
        "gain %",
        ("§5.9", _DDP, "validation accuracy, end"),
        ("§5.9", _DDP, "validation accuracy, start"),
    ),
    Derived(
        "ddp-gap",  # training stands above validation here, as dropout is off in the latter
        ("§5.9", _DDP, "validation gap"),
        "difference",
        ("§5.9", _DDP, "training loss, end"),
        ("§5.9", _DDP, "validation loss, end"),
    ),
    Derived(
        "a-tenth-of-the-examples",
        ("§6.1.3", "dropout 0.09", "share of the examples for the same loss"),
        "ratio",
        ("§6.1.3", "dropout 0.09", "examples"),
        ("§6.1.3", "earlier models", "examples"),
    ),
    Derived(
        "tying-parameters",
        ("§6.2.3", _TIED, "parameters saved"),
        "loss %",
        ("§6.2.3", _TIED, "Params."),
        ("§6.2.3", _UNTIED, "Params."),
    ),
    Derived(
        "tying-examples",
        ("§6.2.3", _TIED, "fewer examples"),
        "ratio",
        ("§6.2.4", "unrefined", "examples"),
        ("§6.2.4", _TIED, "examples"),
    ),
    Derived(
        "figure-19-against-the-text",
        ("§6.2.3", _TIED, "validation loss, lower by, Figure 19"),
        "loss %",
        ("§6.2.4", _TIED, "Validation loss"),
        ("§6.2.4", _UNTIED, "Validation loss"),
    ),
    Derived(
        "tying-loss",
        ("§6.2.5", _TIED, "validation loss, lower by"),
        "loss %",
        ("§6.2.4", _TIED, "Validation loss"),
        ("§6.2.4", _UNTIED, "Validation loss"),
    ),
    Derived(
        "tying-share",
        ("§6.2.5", _TIED, "share of the examples"),
        "share %",
        ("§6.2.4", _TIED, "examples"),
        ("§6.2.4", "unrefined", "examples"),
    ),
)
"""What the running text says about two figures that it or a table prints."""


def check_derived(printed: Printed) -> Iterator[Contradiction]:
    """Every printed percentage, ratio and difference follows from its figures, within their rounding."""
    for rule in (*_table_3_changes(printed), *_table_4_reductions(printed), *TEXT):
        claim, first, second = printed[rule.claim], printed[rule.first], printed[rule.second]
        found = _interval(rule.kind, Interval.of(first), Interval.of(second))
        if Interval.of(claim).meets(found):
            continue
        exact = _interval(rule.kind, Interval(first.value, first.value), Interval(second.value, second.value)).low
        about, unit = "about " if claim.about else "", " %" if claim.unit == "%" else ""
        yield Contradiction(
            rule.identifier,
            references(claim),
            references(first, second),
            (("computed", exact), ("printed", claim.value)),
            f"{place(claim)} is printed as {about}{claim.printed} and comes to {show(exact)}{unit}",
            _WORDS[rule.kind].format(f"{first.printed} ({first.table})", f"{second.printed} ({second.table})"),
        )
