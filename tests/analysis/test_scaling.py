"""How long a step of several takes, in cases that are plain; and docs/scaling.md against all of the formulas.

``python -m tests.analysis.test_scaling`` prints the tables and the figures of that page.
"""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple, cast

import pytest

from colakit.analysis.communication import flows, sent_bytes
from colakit.analysis.flops import step_flops
from colakit.analysis.memory import memory_ledger
from colakit.analysis.params import total_params
from colakit.analysis.scaling import H100_NODES, Compute, Link, Network, pcie_cards, step_time
from colakit.analysis.shares import Strategy, state_bytes, stored
from colakit.config.schema import RunConfig
from tests.analysis.test_communication import config_of, muon_over_adamw, with_optimizer

ROOT = Path(__file__).parents[2]
STRATEGIES: tuple[Strategy, ...] = ("ddp", "zero1", "fsdp2")


ALONE = Compute(forward_ms=40.0, backward_ms=20.0, muon_ms=8.0, adamw_ms=2.0, other_ms=1.0)
SLOW, NO_WAIT = Link(1e-3, 0.0), Link(1e9, 0.0)


def at_once(link: Link) -> Network:
    return Network(8, link, link, call_us=0.0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_without_time_on_the_way_only_the_update_gets_shorter(strategy: Strategy) -> None:
    config = config_of("cola-fan-muon")
    time = step_time(config, strategy, 8, ALONE, at_once(NO_WAIT))
    update = {"ddp": 10.0, "zero1": 10.0 / 8, "fsdp2": 10.0 / 8}[strategy]
    assert time.alone_ms == 71.0
    assert time.step_ms == pytest.approx(61.0 + update, rel=2e-3)  # matrices do not divide into equal parts
    assert time.waiting_ms == pytest.approx(0.0, abs=1e-4)


def test_a_step_waits_for_what_the_backward_pass_does_not_hide() -> None:
    """One in 12 ms, the other in 4: of ddp's sums all but the last bucket's hide behind the last micro-batch's."""
    config = config_of("original")
    hidden, last = (flow.sent_bytes for flow in flows(config, "ddp", 2))
    network = at_once(Link(hidden / 12e6, 0.0))
    for m, behind in ((1, 12.0), (4, 5.0)):
        time = step_time(config, "ddp", 2, ALONE, network, m)
        assert time.communication_ms == pytest.approx(12.0 * (hidden + last) / hidden)
        assert time.waiting_ms == pytest.approx(time.communication_ms - behind)
        assert time.step_ms == pytest.approx(71.0 + time.waiting_ms)


def test_hops_and_calls_take_their_time() -> None:
    """Of 16 in two nodes: 14 steps of a ring within and 1 between; a tree twice 7 within and 1 between."""
    network = Network(8, Link(1e9, 1e3), Link(1e9, 1e5), call_us=1e6)
    config = with_optimizer(config_of("cola-fan"), "adamw")
    ring, tree, call = 14.0 + 100.0, 2 * (7.0 + 100.0), 1e3
    calls = {s: sum(flow.calls for flow in flows(config, s, 16)) for s in STRATEGIES}
    communication = {s: step_time(config, s, 16, ALONE, network).communication_ms for s in STRATEGIES}
    assert communication["ddp"] == pytest.approx(calls["ddp"] * (call + tree), rel=1e-6)
    assert communication["fsdp2"] == pytest.approx(calls["fsdp2"] * (call + ring), rel=1e-6)
    # Hidden reduces, the last bucket's, and the broadcasts: each of the three is one series.
    assert communication["zero1"] == pytest.approx(calls["zero1"] * call + 3 * ring, rel=1e-6)


def test_a_ring_between_nodes_has_all_adapters_of_a_node() -> None:
    network = Network(8, Link(450.0, 0.0), Link(50.0, 0.0), call_us=0.0)
    config = with_optimizer(config_of("cola-fan"), "muon")
    for n, gb_per_s, to_each in ((8, 450.0, 450.0), (16, 400.0, 50.0)):
        found = flows(config, "fsdp2", n)
        expected = sum(f.busiest_bytes / (to_each if f.kind == "all-to-all" else gb_per_s) for f in found) / 1e6
        assert step_time(config, "fsdp2", n, ALONE, network).communication_ms == pytest.approx(expected)


# docs/scaling.md.

H200 = json.loads((ROOT / "benchmarks/h200.json").read_text("utf-8"))
BENCH = next(report for command, report in H200.items() if command.startswith("colakit bench"))
RTX_4090_ALONE, RTX_4090_OF_TWO = 5.94, 5.24
"""The paper's, §5.9: it/s of cola-fan-dropout, and by each of two with DDP."""
PEAKS = {"H200": 989.0, "RTX 4090": 165.0}
"""TFLOP/s of dense products in bfloat16, as NVIDIA's data sheets have them."""
ONE_B = (
    "model.d_model=2048 model.n_layers=22 model.n_heads=32 model.n_kv_heads=4 model.d_ff=5632 model.vocab_size=49152"
)
"""As TinyLlama-1.1B, with SmolLM2's vocabulary."""


MICRO_BATCHES = 8
"""Of 2 sequences each: those of the 1B model on a card of 24 GB."""


ESTIMATE = " (estimate)"
"""Behind the title where a step was not measured."""


class Case(NamedTuple):
    """A model, and how long a step of one H200 alone takes."""

    title: str
    config: RunConfig
    compute: Compute


def measured(preset: str) -> Compute:
    """A compiled step of 16 × 1024 tokens on one H200."""
    result = next(r for r in BENCH["results"] if r["preset"] == preset and r["compiled"])
    optimizer = {part["name"]: part["ms"] for part in result["optimizer_parts"]}
    parts = (result["forward_ms"], result["backward_ms"], optimizer.get("muon", 0.0), optimizer["adamw"])
    return Compute(*parts, other_ms=result["step_ms"] - sum(parts))


def reached_flops_per_s() -> float:
    """Of original's measured step."""
    result = next(r for r in BENCH["results"] if r["preset"] == "original" and r["compiled"])
    return cast(float, result["model_flops"] / result["step_ms"] * 1e3)


def estimated(config: RunConfig) -> Compute:
    """As if all products ran at the speed that original reaches, and AdamW took as long for an entry."""
    flops, per_ms = step_flops(config), reached_flops_per_s() / 1e3
    (head,) = (c for c in flops.components if c.name == "head")  # its gradients are made with the loss
    backward = 2 * (flops.forward - head.forward)
    entries = sum(t.size for t in stored(config.model) if config.optim.optimizer == "adamw" or t.role != "matrix")
    original = measured("original")
    return Compute(
        forward_ms=(flops.model_flops - backward) / per_ms,
        backward_ms=backward / per_ms,
        muon_ms=flops.newton_schulz / per_ms,
        adamw_ms=original.adamw_ms * entries / total_params(config_of("original").model),
    )


@cache
def cases() -> tuple[Case, ...]:
    one_b = config_of("original", *ONE_B.split(), "optim.optimizer=muon")
    return (
        Case("original, AdamW", config_of("original"), measured("original")),
        Case("cola-smollm2-muon", config_of("cola-smollm2-muon"), measured("cola-smollm2-muon")),
        Case("1B, Muon" + ESTIMATE, one_b, estimated(one_b)),
    )


def on_rtx_4090(one: Case) -> Compute:
    """Scaled as a whole: to the paper's speed, or that of its peak."""
    if one.title.endswith(ESTIMATE):
        factor = PEAKS["H200"] / PEAKS["RTX 4090"]
    else:
        factor = 1e3 / RTX_4090_ALONE / one.compute.step_ms
    return Compute(*(factor * ms for ms in vars(one.compute).values()))


def table(head: str, rows: list[tuple[str, ...]]) -> str:
    columns = head.split("|")
    ruler = ["---", "---", *("--:" for _ in columns[2:])]
    return "".join(f"| {' | '.join(cell.strip() for cell in row)} |\n" for row in (columns, ruler, *rows))


def sent_table() -> str:
    rows = [
        (
            case.title.removesuffix(ESTIMATE) if strategy == "ddp" else "",
            strategy,
            *(f"{sent_bytes(case.config, strategy, n) / 1e6:,.0f}" for n in (2, 8, 64, 1024)),
            *(f"{max(state_bytes(case.config, strategy, n)) / 1e6:,.1f}" for n in (8, 64, 1024)),
        )
        for case in cases()
        for strategy in STRATEGIES
    ]
    return table("model | strategy | sent, 2 GPUs | 8 | 64 | 1,024 | state, 8 GPUs | 64 | 1,024", rows)


def time_table() -> str:
    rows = []
    for case in cases():
        for strategy in STRATEGIES:
            times = [step_time(case.config, strategy, n, case.compute, H100_NODES) for n in (8, 64, 1024)]
            cells = [f"{t.step_ms:.1f} ms, {100 * t.efficiency_frac:.0f} %" for t in times]
            title = f"{case.title}: {case.compute.step_ms:.1f} ms alone" if strategy == "ddp" else ""
            rows.append((title, strategy, *cells))
    return table("model | strategy | 8 GPUs | 64 | 1,024", rows)


def cards_table() -> str:
    dropout = Case("cola-fan-dropout, AdamW", config_of("cola-fan-dropout"), measured("cola-smollm2"))
    rows = []
    for case, m in ((dropout, 1), (cases()[2], MICRO_BATCHES)):
        compute = on_rtx_4090(case)
        for strategy in STRATEGIES:
            times = [step_time(case.config, strategy, 2, compute, pcie_cards(rate), m) for rate in (13.0, 25.0)]
            cells = [f"{t.step_ms:,.0f} ms, {2 * t.efficiency_frac:.2f}×" for t in times]
            title = f"{case.title}: {compute.step_ms:,.0f} ms alone" if strategy == "ddp" else ""
            sent = f"{sent_bytes(case.config, strategy, 2, m) / 1e6:,.0f}"
            rows.append((title, strategy, sent, *cells))
    return table("model | strategy | sent, MB | 13 GB/s | 25 GB/s", rows)


def first_slower_than_ddp(case: Case, strategy: Strategy) -> int | None:
    """The least power of two of GPUs; None: not up to 1,024."""
    for n in (1 << i for i in range(1, 11)):
        times = [step_time(case.config, s, n, case.compute, H100_NODES).step_ms for s in ("ddp", strategy)]
        if times[1] > times[0]:
            return n
    return None


ONE_ADAPTER = Network(8, H100_NODES.within, Link(50.0 / 8, 4.0), H100_NODES.call_us)
"""For all GPUs of a node."""


def calls(case: Case, strategy: Strategy, n: int) -> int:
    return sum(flow.calls for flow in flows(case.config, strategy, n))


def efficiency(case: Case, strategy: Strategy, n: int, network: Network = H100_NODES) -> str:
    return f"{100 * step_time(case.config, strategy, n, case.compute, network).efficiency_frac:.0f} %"


def memory_gib(config: RunConfig, micro_batch: int) -> float:
    """Of a step, by ddp."""
    train = config.train.model_copy(update={"micro_batch_size": micro_batch})
    return memory_ledger(config.model_copy(update={"train": train})).plain_total / 2**30


def more_by_muon(case: Case, strategy: Strategy, n: int) -> str:
    return f"{100 * (muon_over_adamw(case.config, strategy, n) - 1):.1f} %"


def figures() -> list[str]:
    """What the text says besides its tables."""
    original, cola, one_b = cases()
    flops, newton_schulz = step_flops(one_b.config), one_b.compute.muon_ms
    printed = 2 * RTX_4090_OF_TWO / RTX_4090_ALONE
    lost_ms = 1e3 / RTX_4090_OF_TWO - 1e3 / RTX_4090_ALONE
    dropout = config_of("cola-fan-dropout")
    together, apart = (step_time(one_b.config, s, 8, one_b.compute, H100_NODES) for s in ("ddp", "zero1"))
    padding = sent_bytes(cola.config, "fsdp2", 1024) / sent_bytes(cola.config, "fsdp2", 64)
    return [
        f"**original** ({total_params(original.config.model) / 1e6:.1f}M parameters",
        f"**cola-smollm2-muon** ({total_params(cola.config.model) / 1e6:.1f}M",
        f"**1B** ({total_params(one_b.config.model):,} parameters",
        f"at the {reached_flops_per_s() / 1e12:.0f} TFLOP/s that original reaches",
        f"{flops.model_flops / 1e12:.0f} TFLOP and Newton–Schulz {flops.newton_schulz / 1e12:.0f}",
        f"of {cola.compute.step_ms:.1f} ms, Muon takes {cola.compute.muon_ms:.1f}",
        f"{newton_schulz:.0f} of {one_b.compute.step_ms:.0f} ms are Newton–Schulz",
        f"reach {step_flops(cola.config).newton_schulz / cola.compute.muon_ms / 1e9:.0f} TFLOP/s there",
        f"{memory_gib(one_b.config, 16 // MICRO_BATCHES):.1f} GiB",
        f"to {apart.step_ms:.0f} ms from {together.step_ms:.0f}",
        f"faster than zero1 for original from {first_slower_than_ddp(original, 'zero1')} GPUs on",
        f"by little at first, and for cola-smollm2-muon from {first_slower_than_ddp(cola, 'zero1')};",
        f"faster than fsdp2 for original from {first_slower_than_ddp(original, 'fsdp2')} GPUs on, "
        f"and for cola-smollm2-muon from {first_slower_than_ddp(cola, 'fsdp2')}:",
        f"at 1,024 GPUs a step is {calls(cola, 'zero1', 1024):,} collectives",
        f"{calls(cola, 'fsdp2', 1024)} rings of 1,023 hops",
        f"{padding:.2f} times what 64 send",
        f"cola-smollm2-muon keeps {efficiency(cola, 'ddp', 64, ONE_ADAPTER)} under ddp",
        *(f"{efficiency(cola, s, 64, ONE_ADAPTER)} under {s}" for s in ("zero1", "fsdp2")),
        f"original {efficiency(original, 'ddp', 64, ONE_ADAPTER)} under ddp",
        f"{printed:.2f}×",
        f"{lost_ms:.1f} ms longer",
        f"{sent_bytes(dropout, 'ddp', 2) / 1e6:.0f} MB",
        f"{sent_bytes(dropout, 'ddp', 2) / lost_ms / 1e6:.1f} GB/s",
        *(f"{more_by_muon(cola, 'fsdp2', n)} at {n:,} GPUs" for n in (2, 8, 64)),
        f"{more_by_muon(one_b, 'fsdp2', 8)} for the 1B model at 8",
        f"are {160_000 / 16_384:.0f} steps of 1,024 GPUs",
    ]


def test_the_page_on_scaling_says_what_is_computed() -> None:
    text = (ROOT / "docs/scaling.md").read_text("utf-8")
    for table_ in (sent_table(), time_table(), cards_table()):
        assert table_ in text
    assert ONE_B.split() == [word for word in text.split() if word.startswith("model.")]
    words = " ".join(text.split())
    assert [figure for figure in figures() if figure not in words] == []
    assert "for 1B not up to 1,024" in words
    assert "For 1B it does not stop paying up to 1,024" in words
    assert first_slower_than_ddp(cases()[2], "zero1") is first_slower_than_ddp(cases()[2], "fsdp2") is None


if __name__ == "__main__":
    print(sent_table(), time_table(), cards_table(), "\n".join(figures()), sep="\n")
