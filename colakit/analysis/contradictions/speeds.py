"""Speeds and times of the running text, against each other and against Table 4."""

from collections.abc import Iterator

from colakit.analysis.contradictions.printed import Interval, Printed
from colakit.analysis.contradictions.record import Contradiction, references, show
from colakit.paper.claims import Claim

_DDP, _V20 = "CoLA_FAN, progressive dropout", "AdamW (version 20)"
_S_PER_H, _S_PER_MIN = 3600, 60


def check_speeds(printed: Printed) -> Iterator[Contradiction]:
    """All checks of speeds and times in the text."""
    yield from _one_gpu_twice(printed)
    yield from _with_and_without(printed)
    yield from _two_gpus(printed)
    yield from _time(
        "ddp-time",
        printed["§5.9", _DDP, "training time"],
        _S_PER_H,
        printed["§5.9", _DDP, "examples"],
        (printed["§5.9", _DDP, "it/s per GPU on two"], printed["§5.9", _DDP, "batch size per GPU"]),
        printed["§5.9", _DDP, "GPUs"].value,
    )
    for preset, row in (("cola-smollm2", "CoLA + SmolLM2"), ("original", "Original")):
        yield from _time(
            f"time-{preset}",
            printed["§5.4", row, "time for them"],
            _S_PER_MIN,
            printed["§5.4", "CoLA + SmolLM2", "examples timed"],
            (printed.of_preset(preset, "Table 4", "it_per_s"), printed["Table 5", "caption", "batch size"]),
        )
    yield from _steps(printed)
    yield from _tokens_per_s(printed)


def _one_gpu_twice(printed: Printed) -> Iterator[Contradiction]:
    alone = printed["§5.9", _DDP, "it/s on one GPU"]
    table = printed.of_preset("cola-fan-dropout", "Table 4", "it_per_s")
    if Interval.of(alone).meets(Interval.of(table)):
        return
    apart = 100 * (alone.value / table.value - 1)
    yield Contradiction(
        "speed-on-one-gpu",
        references(alone, table),
        (),
        (("difference, %", apart),),
        f"CoLA_FAN with dropout runs {alone.printed} it/s on one GPU in §5.9 and {table.printed} in Table 4",
        f"one configuration, {apart:.1f} % apart",
    )


def _with_and_without(printed: Printed) -> Iterator[Contradiction]:
    """§5.9.4's speed without dropout is to be Table 4's row without dropout."""
    without = printed["§5.9", _DDP, "it/s per GPU without dropout"]
    plain = printed.of_preset("cola-fan", "Table 4", "it_per_s")
    dropped = printed.of_preset("cola-fan-dropout", "Table 4", "it_per_s")
    if without.value != dropped.value or plain.value == dropped.value:
        return
    yield Contradiction(
        "speed-without-dropout",
        references(without, dropped),
        references(plain),
        (("it/s without dropout in Table 4", plain.value), ("without / with in Table 4", plain.value / dropped.value)),
        f"{without.printed} it/s is the speed without dropout in §5.9 and with dropout in Table 4",
        f"Table 4 prints {plain.printed} without dropout, {plain.value / dropped.value:.2f} times as much",
    )


def _two_gpus(printed: Printed) -> Iterator[Contradiction]:
    claim = printed["§5.9", _DDP, "throughput of two GPUs"]
    both, alone = printed["§5.9", _DDP, "it/s per GPU on two"], printed["§5.9", _DDP, "it/s on one GPU"]
    gpus = printed["§5.9", _DDP, "GPUs"]
    if Interval.of(claim).meets(Interval.of(both).over(Interval.of(alone)).times(gpus.value)):
        return
    gain = gpus.value * both.value / alone.value
    yield Contradiction(
        "ddp-double",
        references(claim),
        references(both, alone, gpus),
        (("throughput of all over one", gain),),
        f"{show(gpus.value)} GPUs give {gain:.2f} times the throughput of one, which §5.9 calls about {claim.printed}",
        f"{show(gpus.value)} × {both.printed} / {alone.printed} is {gain:.2f}",
    )


def _time(
    identifier: str, time: Claim, seconds: int, examples: Claim, speed_and_batch: tuple[Claim, Claim], gpus: float = 1
) -> Iterator[Contradiction]:
    """Examples over examples/s is the printed time."""
    speed, batch = speed_and_batch
    per_second = Interval.of(speed).times(batch.value * gpus * seconds)
    if Interval.of(time).meets(Interval.of(examples).over(per_second)):
        return
    needed = examples.value / (speed.value * batch.value * gpus * seconds)
    yield Contradiction(
        identifier,
        references(time),
        references(examples, speed, batch),
        ((f"time in {time.unit}", needed),),
        f"{examples.printed} examples take {show(needed)} {time.unit} at the printed speed, not {time.printed}",
        f"{speed.printed} it/s × {batch.printed} × {show(gpus)} GPU is "
        f"{show(speed.value * batch.value * gpus)} examples/s",
    )


def _steps(printed: Printed) -> Iterator[Contradiction]:
    examples, batch = printed["§5.7", _V20, "examples"], printed["§5.7", _V20, "batch size"]
    hours = printed["§5.7", _V20, "training time"]
    steps = examples.value / batch.value
    wrong = [
        claim
        for claim in (
            printed["§5.7", _V20, "steps in Figure 6"],
            printed["§5.7", _V20, "steps until validation is stable"],
        )
        if Interval.of(claim).low > steps
    ]
    if wrong:
        speed = steps / (hours.value * _S_PER_H)
        yield Contradiction(
            "steps-of-version-20",
            references(*wrong),
            references(examples, batch, hours),
            (("steps", steps), ("it/s", speed)),
            f"{examples.printed} examples at batch {batch.printed} are {show(steps)} steps, "
            f"§5.7 speaks of {' and '.join(claim.printed for claim in wrong)}",
            f"in {hours.printed} h that is {speed:.2f} it/s, and {wrong[0].printed} steps would be "
            f"{wrong[0].value / steps:.2f} times the examples",
        )


def _tokens_per_s(printed: Printed) -> Iterator[Contradiction]:
    claim, hours = printed["§5.7", _V20, "tokens/s"], printed["§5.7", _V20, "training time"]
    examples, seq_len = printed["§5.7", _V20, "examples"], printed["Table 7", "caption", "seq_len"]
    minutes, timed = (
        printed["§5.4", "CoLA + SmolLM2", "time for them"],
        printed["§5.4", "CoLA + SmolLM2", "examples timed"],
    )
    speed = printed.of_preset("cola-smollm2", "Table 4", "it_per_s")
    batch = printed["Table 5", "caption", "batch size"]
    own = examples.value / (hours.value * _S_PER_H) * seq_len.value
    fifteen = timed.value / (minutes.value * _S_PER_MIN) * seq_len.value
    if Interval.of(claim).meets(Interval.of(examples).over(Interval.of(hours)).times(seq_len.value / _S_PER_H)):
        return
    yield Contradiction(
        "tokens-per-s-of-version-20",
        references(claim),
        references(hours, examples, seq_len, minutes, timed, speed, batch),
        (
            ("tokens/s of §5.7's own time", own),
            ("tokens/s of §5.4's time", fifteen),
            ("tokens/s of Table 4", speed.value * batch.value * seq_len.value),
            ("tokens per example at the printed tokens/s", claim.value / (own / seq_len.value)),
        ),
        f"§5.7's {claim.printed} tokens/s is {own / claim.value:.1f} times too low for its own run",
        f"{examples.printed} examples of {show(seq_len.value)} tokens in {hours.printed} h are {show(own)} tokens/s; "
        f"§5.4's {timed.printed} in {minutes.printed} min are {show(fifteen)}, and Table 4's {speed.printed} it/s at "
        f"batch {show(batch.value)} {show(speed.value * batch.value * seq_len.value)}",
    )
