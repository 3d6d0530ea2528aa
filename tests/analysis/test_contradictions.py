"""Every contradiction is computed: its figures are right, and it goes when the figure that causes it is corrected."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from colakit.analysis.contradictions import (
    Contradiction,
    contradiction_of,
    contradictions_of,
    find_contradictions,
)
from colakit.analysis.contradictions.flops import evaluate
from colakit.analysis.contradictions.printed import Interval
from colakit.paper.claims import CLAIMS, AnyClaim, Claim, FormulaClaim, Reference, TextClaim, claim

Changes = Mapping[Reference, float | str]

V10, V20, DDP = "AdamW (version 10)", "AdamW (version 20)", "CoLA_FAN, progressive dropout"
TIED = "refined, tied"
TABLE_7_COLUMNS = (
    "Original",
    "CoLA+SmolLM2",
    "CoLA+SmolLM2+Muon",
    "FANformer+SmolLM2",
    "FANformer+SmolLM2+Muon",
)
FORWARD_FORMULAS: Changes = {
    ("Table 6", "attention Q, K, V", "CoLA"): "12ndr",
    ("Table 6", "attention projection", "CoLA"): "4ndr",
    ("Table 6", "feed-forward", "CoLA"): "6nr(d+d_ff)",
}


def corrected(changes: Changes) -> tuple[AnyClaim, ...]:
    """All claims, some with another value; every change is of a claim that exists."""
    assert changes.keys() <= {c.reference for c in CLAIMS}

    def change(c: AnyClaim) -> AnyClaim:
        value = changes.get(c.reference)
        if value is None:
            return c
        if isinstance(c, Claim):
            assert isinstance(value, float | int)
            return replace(c, value=value, printed=str(value))
        assert isinstance(value, str)
        return replace(c, formula=value) if isinstance(c, FormulaClaim) else replace(c, value=value)

    return tuple(change(c) for c in CLAIMS)


def identifiers(changes: Changes) -> set[str]:
    return {found.identifier for found in find_contradictions(corrected(changes))}


def found(identifier: str, changes: Changes | None = None) -> Contradiction:
    (one,) = (c for c in find_contradictions(corrected(changes or {})) if c.identifier == identifier)
    return one


def figure(identifier: str, name: str, changes: Changes | None = None) -> float:
    return dict(found(identifier, changes).figures)[name]


def table_3(column: str, **values: float) -> Changes:
    return {("Table 3", name.replace("_", " "), column): value for name, value in values.items()}


def table_7(row: str, *values: float) -> Changes:
    return {("Table 7", row, column): value for column, value in zip(TABLE_7_COLUMNS, values, strict=True)}


CORRECTIONS: dict[str, Changes] = {
    "table3-over-peak": {
        **table_3("AdamW examples/s", batch_64=448.0, batch_128=448.0),
        **table_3("Muon examples/s", batch_64=448.0, batch_128=448.0),
    },
    "table3-over-largest-batch": table_3("batch size", batch_64=34, batch_128=36),
    "table3-speed-adamw": table_3("AdamW examples/s", batch_16=106.7),
    "table3-speed-muon": table_3("Muon examples/s", batch_16=83.2),
    "muon-cost": table_3("Muon examples/s", batch_16=122.3),
    "table3-step-time-muon": table_3("Muon examples/s", batch_128=900.0),
    "losses-table3-table4": table_3("AdamW loss at 10k steps", batch_4=4.42),
    "table6-conventions": FORWARD_FORMULAS,
    "table6-saving": FORWARD_FORMULAS,
    "table7-tokens-per-s": {("Table 7", "caption", "batch"): 1},
    "table7-over-largest-batch": {("Table 7", "caption", "batch"): 16},
    "table7-speed-of-batch-16": {("Table 7", "caption", "batch"): 16},
    "table7-time-cola-fan-muon": {("Table 7", "time per batch (ms)", "FANformer+SmolLM2+Muon"): 205},
    "table7-memory-over-vram": table_7("activations (GB)", 9.2, 8.0, 8.0, 8.0, 8.0),
    "table7-gradient-bytes": table_7("gradients (GB)", 0.9, 0.3, 0.3, 0.3, 0.3),
    "gpu-utilisation-adamw": {("§5.7", V10, "mean GPU utilisation"): 96},
    "cola-parameters-twice": {("§5.1", "CoLA with Phi-4's tokenizer", "Params."): 156},
    "cola-parameters-per-entry-table4": {("Table 4", "CoLA", "Params."): 137},
    "cola-parameters-per-entry-text": {("§5.1", "CoLA with Phi-4's tokenizer", "Params."): 137},
    "listing-l2-norm": {("§2.1.1", "listing", "norm of Q, K and V"): "RMSNorm"},
    "vram-before-dropout": {("§2.3.4", "CoLA_FAN with dropout", "VRAM before"): 11.2},
    "largest-batch-original": {("Table 5", "Original", "Max batch"): 24},
    "fan-ratio-range": {("§2.3.2", "FAN ratio p", "most, by model size"): 0.35},
    "losses-across-tokenizers": {("§5.1", "Phi-4", "tokens"): 49_152},
    "loss-of-the-long-run": {("§5.9", DDP, "validation loss, end"): 4.21},
    "loss-reduction-adamw": {("§5.7", V10, "loss reduction, Figure 8"): 19},
    "loss-reductions-and-ends": {
        ("§5.7", V10, "loss reduction, Figure 8"): 36,
        ("§5.7", V10, "training loss reduction, Figure 9"): 37,
    },
    "figure-9-against-table-4": {("§5.7", V10, "final validation loss"): 4.49},
    "speed-on-one-gpu": {("§5.9", DDP, "it/s on one GPU"): 5.68},
    "speed-without-dropout": {("§5.9", DDP, "it/s per GPU without dropout"): 6.24},
    "ddp-double": {("§5.9", DDP, "throughput of two GPUs"): 1.76},
    "steps-of-version-20": {
        ("§5.7", V20, "steps in Figure 6"): 62_500,
        ("§5.7", V20, "steps until validation is stable"): 40_000,
    },
    "time-original": {("§5.4", "Original", "time for them"): 34.7},
    "tokens-per-s-of-version-20": {("§5.7", V20, "tokens/s"): 47_000},
    "figure-19-against-the-text": {("§6.2.3", TIED, "validation loss, lower by, Figure 19"): 0.95},
}
"""What would have to be printed for each contradiction to vanish."""


def test_each_contradiction_has_a_correction_here() -> None:
    assert [c.identifier for c in find_contradictions()] == list(
        dict.fromkeys(c.identifier for c in find_contradictions())
    )
    assert {c.identifier for c in find_contradictions()} == CORRECTIONS.keys()


@pytest.mark.parametrize("identifier", CORRECTIONS)
def test_a_contradiction_vanishes_when_its_figures_are_corrected(identifier: str) -> None:
    changes = CORRECTIONS[identifier]
    assert identifier not in identifiers(changes)
    involved = found(identifier)
    assert changes.keys() & {*involved.claims, *involved.evidence}


ERRORS: dict[str, Changes] = {
    "table3-step-time-adamw": table_3("AdamW examples/s", batch_128=1500.0),
    "table3-change-examples-s-8": {("Table 3", "batch 8", "change of examples/s"): -27},
    "table3-change-loss-128": {("Table 3", "batch 128", "change of loss"): -10.1},
    "table4-reduction-cola": {("Table 4", "CoLA", "Reduction"): 34.5},
    "table7-time-cola-smollm2": {("Table 7", "time per batch (ms)", "CoLA+SmolLM2"): 152},
    "gpu-utilisation-muon": {("§5.7", "Muon (version 11)", "mean GPU utilisation"): 78},
    "loss-reduction-muon": {("§5.7", "Muon (version 11)", "loss reduction, Figure 8"): 35},
    "largest-batch-cola": {("Table 5", "CoLA", "Max batch"): 20},
    "ddp-time": {("§5.9", DDP, "training time"): 6},
    "time-cola-smollm2": {("§5.4", "CoLA + SmolLM2", "time for them"): 10},
    "fan-parameters": {("§2.3.4", "CoLA_FAN", "parameters added"): 9},
    "fan-vram": {("§2.3.4", "CoLA_FAN without dropout", "VRAM added"): 0.5},
    "dropout-vram": {("§2.3.4", "CoLA_FAN with dropout", "VRAM added"): 11},
    "fan-speed": {("§2.3.4", "CoLA_FAN without dropout", "it/s lost"): 6.7},
    "muon-state": {("§4.2", "Muon against AdamW", "optimizer state saved"): 80},
    "tokenizer-parameters": {("§5.1", "SmolLM2's tokenizer", "parameters saved"): 44.7},
    "speed-up": {("§5.4", "CoLA + SmolLM2 against Original", "speed"): 2.4},
    "muon-speed": {("§5.4", "Muon against AdamW", "it/s lost"): 16},
    "version-20-reduction": {("§5.7", V20, "training loss reduction"): 8.6},
    "version-20-gap": {("§5.7", V20, "validation gap"): 0.07},
    "fan-tokens-per-s": {("§5.7", "FANformer against CoLA+SmolLM2", "tokens/s lost"): 9.4},
    "muon-reduction": {("§5.8", "Muon against AdamW", "training loss reduction"): 3.0},
    "ddp-training-loss": {("§5.9", DDP, "training loss reduction"): 18},
    "ddp-accuracy": {("§5.9", DDP, "validation accuracy gain"): 2},
    "ddp-gap": {("§5.9", DDP, "validation gap"): 0.09},
    "a-tenth-of-the-examples": {("§6.1.3", "dropout 0.09", "share of the examples for the same loss"): 0.3},
    "tying-parameters": {("§6.2.3", TIED, "parameters saved"): 12.8},
    "tying-examples": {("§6.2.3", TIED, "fewer examples"): 15},
    "tying-loss": {("§6.2.5", TIED, "validation loss, lower by"): 3},
    "tying-share": {("§6.2.5", TIED, "share of the examples"): 8.8},
}
"""What the paper prints right, and a misprint that would be found."""


@pytest.mark.parametrize("identifier", ERRORS)
def test_a_misprint_would_be_found(identifier: str) -> None:
    assert identifier not in identifiers({})
    assert identifier in identifiers(ERRORS[identifier])


@pytest.mark.parametrize(
    ("identifier", "name", "value"),
    [
        ("table3-over-peak", "TFLOP/s, AdamW examples/s at batch 128", 410.0),
        ("table3-speed-adamw", "examples/s of Table 4's fastest row", 106.72),
        ("table3-speed-muon", "examples/s of Table 4's fastest row", 83.2),
        ("muon-cost", "lost in Table 3, %", 16.33),
        ("table3-step-time-muon", "ms per step, batch 4", 138.9),
        ("table3-step-time-muon", "ms per step, batch 128", 104.2),
        ("table6-conventions", "48ndr / forward pass", 4.0),
        ("table6-conventions", "16ndr / forward pass", 4.0),
        ("table6-conventions", "18nr(d+d_ff) / forward pass", 3.0),
        ("table6-conventions", "48ndr / forward of all four", 3.0),
        ("table6-conventions", "16ndr / forward of all four", 1.0),
        ("table6-saving", "CoLA / Original, attention Q, K, V", 2.0),
        ("table6-saving", "CoLA / Original, feed-forward", 1.03125),
        ("table7-tokens-per-s", "sequences per batch, CoLA+SmolLM2", 1.0),
        ("table7-memory-over-vram", "GB, Original", 18.8),
        ("table7-gradient-bytes", "bytes per parameter, Original", 20.34),
        ("cola-parameters-per-entry-table4", "parameters per vocabulary entry", 1320.8),
        ("cola-parameters-per-entry-table4", "rank 192 with a bias", 961.0),
        ("cola-parameters-per-entry-table4", "dense and untied", 1536.0),
        ("listing-l2-norm", "largest logit", 0.125),
        ("listing-l2-norm", "largest ratio of two attention weights", 1.284),
        ("losses-across-tokenizers", "nats between two uniform guesses", 0.7301),
        ("ddp-double", "throughput of all over one", 1.764),
        ("time-original", "time in min", 34.72),
        ("steps-of-version-20", "steps", 62_500.0),
        ("steps-of-version-20", "it/s", 2.894),
        ("tokens-per-s-of-version-20", "tokens/s of §5.7's own time", 47_407.0),
        ("tokens-per-s-of-version-20", "tokens/s of Table 4", 109_281.0),
        ("vram-before-dropout", "added from Table 4, %", 10.71),
        ("figure-19-against-the-text", "computed", 0.9503),
    ],
)
def test_the_computed_figures(identifier: str, name: str, value: float) -> None:
    assert figure(identifier, name) == pytest.approx(value, rel=1e-3)


def test_sentences_are_built_from_the_figures() -> None:
    """Another printed figure is another sentence."""
    changes = table_3("Muon examples/s", batch_128=1000.0)
    sentence = found("table3-over-peak", changes).sentence
    assert "1113.6 examples/s is 1,140,326 tokens/s" in sentence
    assert "410 TFLOP/s" in sentence
    assert "1228.8" not in sentence
    assert "1.50 times" in found("ddp-double", {("§5.9", DDP, "it/s per GPU on two"): 4.455}).summary


def test_a_row_is_compared_with_its_own_twin() -> None:
    """Were Figure 9's Muon run cola-fan-muon, its twin would be cola-fan, which starts from 4.47."""
    changes = {("§5.7", "Muon (version 11)", "final validation loss"): 4.43}
    assert figure("figure-9-against-table-4", "Table 4's gain", changes) == pytest.approx(0.04)


@pytest.mark.parametrize("one", find_contradictions(), ids=lambda c: c.identifier)
def test_a_contradiction_is_about_printed_figures(one: Contradiction) -> None:
    known = {c.reference for c in CLAIMS}
    assert one.claims
    assert {*one.claims, *one.evidence} <= known
    assert not set(one.claims) & set(one.evidence)
    assert len(dict(one.figures)) == len(one.figures) > 0
    assert one.summary[0].isupper() or not one.summary[0].isalpha()
    assert not one.sentence.endswith(".")


def test_contradiction_of_joins_what_a_claim_is_party_to() -> None:
    cola = claim("cola", "parameters")
    assert cola is not None
    both = contradictions_of(cola)
    assert [c.identifier for c in both] == ["cola-parameters-twice", "cola-parameters-per-entry-table4"]
    assert contradiction_of(cola) == "; ".join(c.sentence for c in both)
    original = claim("original", "parameters")
    assert original is not None
    assert contradiction_of(original) is None  # Table 7's gradients are wrong, not the count they are divided by


def test_the_marked_cells_of_table_6_are_those_that_count_backward_or_four_projections() -> None:
    marked = [c.formula for c in CLAIMS if isinstance(c, FormulaClaim) and contradiction_of(c)]
    assert marked == ["48ndr", "16ndr", "18nr(d+d_ff)"]


def test_words_without_arithmetic_are_never_contradicted_but_for_the_listing() -> None:
    marked = [c.reference for c in CLAIMS if isinstance(c, TextClaim) and contradiction_of(c)]
    assert marked == [("§2.1.1", "listing", "norm of Q, K and V")]


# formulas and intervals


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("6nd²", 6 * 2 * 3**2),
        ("4n²d", 4 * 2**2 * 3),
        ("48ndr", 48 * 2 * 3 * 5),
        ("6nd·d_ff", 6 * 2 * 3 * 7),
        ("18nr(d+d_ff)", 18 * 2 * 5 * (3 + 7)),
    ],
)
def test_a_formula_in_numbers(formula: str, value: int) -> None:
    assert evaluate(formula, n=2, d=3, r=5, d_ff=7) == value


@pytest.mark.parametrize("formula", ["6nx", "6n+d", "(d+r)", "n "])
def test_what_is_no_product_is_refused(formula: str) -> None:
    with pytest.raises(ValueError, match="is not a product at"):
        evaluate(formula, n=2, d=3, r=5, d_ff=7)


def test_an_interval_is_what_rounding_leaves_open() -> None:
    speed, time = claim("cola-smollm2", "it_per_s"), claim("cola-smollm2", "duration")
    assert speed is not None
    assert time is not None
    assert (Interval.of(speed).low, Interval.of(speed).high) == pytest.approx((6.665, 6.675))
    assert (Interval.of(time).low, Interval.of(time).high) == pytest.approx((13.0, 17.0))  # "about" 15 minutes


def test_interval_arithmetic_encloses() -> None:
    a, b = Interval(2.0, 4.0), Interval(5.0, 8.0)
    assert a.by(b) == Interval(10.0, 32.0)
    assert a.over(b) == Interval(0.25, 0.8)
    assert a.minus(b) == Interval(-6.0, -1.0)
    assert a.times(-2.0) == Interval(-8.0, -4.0)
    assert a.plus(1.0) == Interval(3.0, 5.0)
    assert a.meets(Interval(4.0, 9.0))
    assert not a.meets(b)
