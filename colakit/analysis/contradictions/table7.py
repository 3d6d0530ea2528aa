"""Table 7 against its caption, against Tables 4 and 5, and against the text."""

from collections.abc import Iterator

from colakit.analysis.contradictions.presets import uses_muon
from colakit.analysis.contradictions.printed import Interval, Printed
from colakit.analysis.contradictions.record import Contradiction, references, show, spread
from colakit.paper.claims import Claim

_FLOAT32_BYTES = 4
_SAME_FRAC = 0.02
"""A time and a speed that agree this well are taken as one measurement, printed twice."""


def check_table_7(printed: Printed) -> Iterator[Contradiction]:
    """All checks of Table 7."""
    yield from _sequences_per_iteration(printed)
    yield from _batch_over_largest(printed)
    yield from _speed_of_another_batch(printed)
    yield from _time_against_table_4(printed)
    yield from _memory_over_vram(printed)
    yield from _gradient_bytes(printed)
    yield from _gpu_utilisation(printed)


def _column(printed: Printed, claim: Claim, row: str) -> Claim:
    return printed["Table 7", row, claim.column]


def _same_measurement(time_ms: Claim, speed: Claim) -> bool:
    return abs(1000 / time_ms.value / speed.value - 1) < _SAME_FRAC


def _sequences_per_iteration(printed: Printed) -> Iterator[Contradiction]:
    batch, seq_len = (printed["Table 7", "caption", name] for name in ("batch", "seq_len"))
    speeds = printed.numbers("Table 7", "tokens_per_s")
    tokens = {c: c.value * _column(printed, c, "time per batch (ms)").value / 1000 for c in speeds}
    sequences = {c: tokens[c] / seq_len.value for c in speeds}
    times = {c: Interval.of(_column(printed, c, "time per batch (ms)")) for c in speeds}
    implied = {c: Interval.of(c).by(times[c]).times(1 / (1000 * seq_len.value)) for c in speeds}
    wrong = [c for c in speeds if not implied[c].meets(Interval.of(batch))]
    if not wrong:
        return
    first = wrong[0]
    time = _column(printed, first, "time per batch (ms)")
    yield Contradiction(
        "table7-tokens-per-s",
        references(*wrong, batch),
        references(seq_len, *(_column(printed, c, "time per batch (ms)") for c in wrong)),
        tuple((f"sequences per batch, {c.column}", sequences[c]) for c in wrong),
        f"Table 7's tokens/s are those of {spread([round(sequences[c], 2) for c in wrong])} sequence per batch, "
        f"its caption says {show(batch.value)}",
        f"tokens/s × time per batch, {first.printed} × {time.printed} ms, is {show(tokens[first])} tokens: "
        f"{sequences[first]:.2f} × {show(seq_len.value)}, and so in {len(wrong)} of {len(speeds)} columns",
    )


def _batch_over_largest(printed: Printed) -> Iterator[Contradiction]:
    batch = printed["Table 7", "caption", "batch"]
    times = printed.numbers("Table 7", "step_ms")
    largest = {c: printed.of_preset(c.preset or "", "Table 5", "largest_batch") for c in times}
    wrong = [c for c in times if batch.value > largest[c].value]
    if wrong:
        yield Contradiction(
            "table7-over-largest-batch",
            references(batch),
            references(*(largest[c] for c in wrong)),
            tuple((f"batch / largest batch, {c.column}", batch.value / largest[c].value) for c in wrong),
            f"Table 7's batch of {show(batch.value)} does not fit {len(wrong)} of its {len(times)} systems",
            ", ".join(f"Table 5's largest batch of {c.column} is {show(largest[c].value)}" for c in wrong),
        )


def _speed_of_another_batch(printed: Printed) -> Iterator[Contradiction]:
    """Twice the sequences cannot take the same time, where the GPU was busy before."""
    batch, batch_5 = printed["Table 7", "caption", "batch"], printed["Table 5", "caption", "batch size"]
    same = []
    for c in printed.numbers("Table 7", "step_ms"):
        speed = printed.of_preset(c.preset or "", "Table 5", "it_per_s")
        implied = Interval(1000, 1000).over(Interval.of(c))
        if batch.value != batch_5.value and implied.meets(Interval.of(speed)):
            same.append((c, speed))
    if same:
        first, speed = same[0]
        yield Contradiction(
            "table7-speed-of-batch-16",
            references(batch, *(c for c, _ in same)),
            references(batch_5, *(speed for _, speed in same)),
            tuple((f"it/s, {c.column}", 1000 / c.value) for c, _ in same),
            f"Table 7's times at batch {show(batch.value)} are Table 5's at batch {show(batch_5.value)}",
            f"{first.printed} ms is {1000 / first.value:.2f} it/s, and Table 5 prints {speed.printed} for "
            f"{first.column}; so in {len(same)} of {len(printed.numbers('Table 7', 'step_ms'))} columns",
        )


def _time_against_table_4(printed: Printed) -> Iterator[Contradiction]:
    for c in printed.numbers("Table 7", "step_ms"):
        speed = printed.of_preset(c.preset or "", "Table 4", "it_per_s")
        implied = Interval(1000, 1000).over(Interval.of(c))
        if implied.meets(Interval.of(speed)) or not _same_measurement(c, speed):
            continue
        yield Contradiction(
            f"table7-time-{c.preset}",
            references(c),
            references(speed),
            (("it/s", 1000 / c.value), ("ms", 1000 / speed.value)),
            f"Table 7's {c.printed} ms for {c.column} is {1000 / c.value:.2f} it/s, Table 4 prints {speed.printed}",
            f"{speed.printed} it/s is {1000 / speed.value:.1f} ms",
        )


def _memory_over_vram(printed: Printed) -> Iterator[Contradiction]:
    wrong = []
    for activations in printed.numbers("Table 7", "activation_memory"):
        gradients = _column(printed, activations, "gradients (GB)")
        vram = printed.of_preset(activations.preset or "", "Table 4", "vram")
        if Interval.of(activations).low + Interval.of(gradients).low > Interval.of(vram).high:
            wrong.append((activations, gradients, vram))
    if wrong:
        a, g, v = wrong[0]
        yield Contradiction(
            "table7-memory-over-vram",
            references(*(c for a, g, _ in wrong for c in (a, g))),
            references(*(vram for _, _, vram in wrong)),
            tuple((f"GB, {a.column}", a.value + g.value) for a, g, _ in wrong),
            f"In {len(wrong)} columns of Table 7, activations and gradients exceed all the VRAM that Table 4 prints",
            f"{a.printed} + {g.printed} is {a.value + g.value:.1f} GB against {v.printed} GB for {a.column}",
        )


def _gradient_bytes(printed: Printed) -> Iterator[Contradiction]:
    wrong = {}
    for c in printed.numbers("Table 7", "gradient_memory"):
        size = printed.of_preset(c.preset or "", "Table 4", "parameters")
        if Interval.of(c).low * 1e9 > _FLOAT32_BYTES * Interval.of(size).high * 1e6:
            wrong[c] = size
    if wrong:
        each = {c: 1000 * c.value / size.value for c, size in wrong.items()}
        first = next(iter(wrong))
        yield Contradiction(
            "table7-gradient-bytes",
            references(*wrong),
            references(*wrong.values()),
            tuple((f"bytes per parameter, {c.column}", value) for c, value in each.items()),
            f"Table 7's gradients take {spread([round(v, 1) for v in each.values()])} bytes per parameter, "
            f"where float32 takes {_FLOAT32_BYTES}",
            f"{first.printed} GB for {wrong[first].printed} parameters is {each[first]:.1f} bytes each",
        )


def _gpu_utilisation(printed: Printed) -> Iterator[Contradiction]:
    """§5.7 quotes mean utilisations from Table 7."""
    for run, muon in (("AdamW (version 10)", False), ("Muon (version 11)", True)):
        claim = printed["§5.7", run, "mean GPU utilisation"]
        cells = [c for c in printed.numbers("Table 7", "gpu_util") if uses_muon(c.preset) == muon]
        if any(Interval.of(claim).meets(Interval.of(c)) for c in cells):
            continue
        yield Contradiction(
            f"gpu-utilisation-{'muon' if muon else 'adamw'}",
            references(claim),
            references(*cells),
            (("least distance in points", min(abs(claim.value - c.value) for c in cells)),),
            f"§5.7 quotes a GPU utilisation of {claim.printed} for {run} from Table 7, which has no such figure",
            f"its columns with that optimizer print {', '.join(c.printed for c in cells)}",
        )
