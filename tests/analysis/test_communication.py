"""What is sent and kept against sums written out by hand and against who divides it; docs/scaling.md against both.

With real processes: tests/parallel/test_traffic.py. ``python tests/analysis/test_communication.py`` prints the tables
and the figures of docs/scaling.md.
"""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple, cast

import pytest
import torch
from torch import nn

from colakit.analysis.communication import (
    H100_NODES,
    Compute,
    Link,
    Network,
    Strategy,
    flows,
    pcie_cards,
    sent_bytes,
    state_bytes,
    step_time,
    stored,
)
from colakit.analysis.flops import step_flops
from colakit.analysis.memory import memory_ledger
from colakit.analysis.params import total_params
from colakit.analysis.sharding import chunk
from colakit.build import lm_config
from colakit.config.load import resolve
from colakit.config.presets import preset_names
from colakit.config.schema import RunConfig
from colakit.model.lm import LM
from colakit.optim.groups import route
from colakit.optim.pieces import ByOwner
from colakit.optim.sharded_muon import ShardedMuon
from colakit.parallel.world import World

ROOT = Path(__file__).parents[2]
STRATEGIES: tuple[Strategy, ...] = ("ddp", "zero1", "fsdp2")
SIZES = (2, 3, 4, 7, 64)


def config_of(preset: str, *sets: str) -> RunConfig:
    return resolve(preset, sets=sets).config


def with_optimizer(config: RunConfig, optimizer: str) -> RunConfig:
    return config.model_copy(update={"optim": config.optim.model_copy(update={"optimizer": optimizer})})


# What is sent.


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_process_sends_nothing_and_keeps_all_state(strategy: Strategy, optimizer: str) -> None:
    config = with_optimizer(config_of("cola-fan"), optimizer)
    assert flows(config, strategy, 1) == ()
    (state,) = state_bytes(config, strategy, 1)
    vectors = sum(t.size for t in stored(config.model) if optimizer == "adamw" or t.role != "matrix")
    assert state == 4 * (total_params(config.model) + vectors)


@pytest.mark.parametrize("preset", ["original", "cola-fan-muon", "refined-tied"])
@pytest.mark.parametrize("n", SIZES)
def test_ddp_and_zero1_send_all_parameters_twice_round_a_ring(preset: str, n: int) -> None:
    config = config_of(preset)
    whole = 4 * total_params(config.model)
    assert sent_bytes(config, "ddp", n, kind="all-reduce") == pytest.approx(2 * (n - 1) / n * whole, rel=1e-14)
    assert sent_bytes(config, "zero1", n, kind="reduce") == pytest.approx((n - 1) / n * whole, rel=1e-14)
    assert sent_bytes(config, "zero1", n, kind="broadcast") == pytest.approx((n - 1) / n * whole, rel=1e-14)
    for strategy in ("ddp", "zero1"):
        assert (
            sent_bytes(config, strategy, n, 3)
            == sent_bytes(config, strategy, n)
            == pytest.approx(sent_bytes(config, "ddp", n), rel=1e-14)
        )


def test_fsdp2_gathers_blocks_twice_and_the_rest_once_in_each_micro_batch() -> None:
    """d_model 24 with 4 heads and 2 for keys and values, d_ff 40, 50 tokens, by 3: rows padded to a multiple of 3."""
    sizes = {"d_model": 24, "n_heads": 4, "n_kv_heads": 2, "d_ff": 40, "n_layers": 2, "vocab_size": 50}
    config = config_of("original", *(f"model.{name}={size}" for name, size in sizes.items()))
    # Q, K and V are one tensor of 48 rows; then out, gate and up, down; norms of 6 each head, and around the layers.
    block = 48 * 24 + 24 * 24 + 81 * 24 + 24 * 40 + 3 * 6
    blocks = 2 * block + (2 + 1) * 24
    root = 2 * 51 * 24 + 24
    for m in (1, 4):
        assert sent_bytes(config, "fsdp2", 3, m, "all-gather") == pytest.approx(m * 2 / 3 * 4 * (2 * blocks + root))
        assert sent_bytes(config, "fsdp2", 3, m, "reduce-scatter") == pytest.approx(m * 2 / 3 * 4 * (blocks + root))


def test_muon_sends_under_fsdp2_what_does_not_lie_with_the_owner() -> None:
    """Two processes and one block; in float32 there, in bfloat16 back."""
    sizes = {"d_model": 24, "n_heads": 4, "n_kv_heads": 4, "d_ff": 40, "n_layers": 1, "vocab_size": 50}
    config = config_of("original", "optim.optimizer=muon", *(f"model.{name}={size}" for name, size in sizes.items()))
    # The dearest first, each to who has least so far: gate, down and V to the first, up, Q, K and O to the second.
    # Q, K and V are one tensor of 72 rows, of which the first has 36: Q and half of K. Gate and up are where they go.
    q, k, v, o, down = 24 * 24, 12 * 24, 24 * 24, 12 * 24, 12 * 40
    assert sent_bytes(config, "fsdp2", 2, kind="all-to-all") == (4 + 2) * (q + k + v + o + down) / 2


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("preset", ["original", "cola-fan", "refined-tied"])
def test_more_processes_send_more_and_keep_less(preset: str, strategy: Strategy) -> None:
    config = config_of(preset)
    sent = [sent_bytes(config, strategy, n) for n in (1, 2, 4, 8, 64, 1024)]
    kept = [max(state_bytes(config, strategy, n)) for n in (1, 2, 4, 8, 64, 1024)]
    assert sent == sorted(sent)
    assert kept == sorted(kept, reverse=True)
    assert (len(set(kept)) == 1) == (strategy == "ddp")


@pytest.mark.parametrize("n", SIZES)
def test_muon_sends_more_than_adamw_under_fsdp2_alone(n: int) -> None:
    config = config_of("cola-fan")
    ratios = {s: muon_over_adamw(config, s, n) for s in STRATEGIES}
    assert ratios["ddp"] == ratios["zero1"] == 1.0
    assert 1.0 < ratios["fsdp2"] < 1.0 + 0.3 / n


def muon_over_adamw(config: RunConfig, strategy: Strategy, n: int) -> float:
    """Bytes sent by the one over those by the other."""
    muon, adamw = (sent_bytes(with_optimizer(config, optimizer), strategy, n) for optimizer in ("muon", "adamw"))
    return muon / adamw


GOLDEN = """\
original                  1641792768    1914334464
cola                       974140944    1117615632
cola-smollm2               618632448     762107136
cola-smollm2-muon          618632448     788875008
cola-fan                   652078812     812981904
cola-fan-muon              652078812     843121824
cola-fan-dropout           652078812     812981904
cola-fan-dropout-muon      652078812     843121824
cola-m                     618632448     762107136
cola-fan-atf               660803976     826429632
refined                    652078812     843121824
refined-tied               584642268     775685280
smollm2-stages             652078812     843121824
"""
"""By preset, of 8 processes with one micro-batch: what each sends in a step under ddp and under fsdp2, bytes."""


def test_golden_bytes_of_every_preset() -> None:
    assert golden() == GOLDEN


def golden() -> str:
    lines = [
        f"{preset:22} {sent_bytes(c, 'ddp', 8):13.0f} {sent_bytes(c, 'fsdp2', 8):13.0f}\n"
        for preset in preset_names()
        for c in [config_of(preset)]
    ]
    return "".join(lines)


# As those that divide it have it, at any number of processes.


class Imagined(World):
    """One of so many."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@cache
def built(preset: str) -> LM:
    """At its full size, without memory."""
    with torch.device("meta"):
        return LM(lm_config(config_of(preset).model, "sdpa"))


@pytest.mark.parametrize("preset", preset_names())
def test_parameters_are_stored_as_foreseen(preset: str) -> None:
    model = built(preset)
    shapes, roles = {name: tuple(p.shape) for name, p in model.named_parameters()}, model.param_roles()
    real = [(r.role, shapes[name], r.matrix_rows, name.startswith("blocks.")) for name, r in roles.items()]
    foreseen = [(t.role, t.shape, t.matrix_rows, t.in_block) for t in stored(config_of(preset).model)]
    assert [each for each in foreseen if each[0] == "matrix"] == [each for each in real if each[0] == "matrix"]
    real = [(*each[:2], () if each[0] == "embedding" else each[2], each[3]) for each in real]
    assert sorted(foreseen) == sorted(real)
    assert foreseen[-1][0] == "embedding"


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("preset", ["original", "cola-fan-muon", "refined-tied", "cola-fan-atf"])
def test_zero1_keeps_what_falls_to_each(preset: str, n: int) -> None:
    model, config = built(preset), config_of(preset, "train.device=cpu")
    roles = model.param_roles()
    routing = route(model, roles, muon=config.optim.optimizer == "muon")
    division = ByOwner(dict(model.named_parameters()), routing, roles, config.optim, Imagined(0, n))
    moments = {name: 1 if name in routing.muon else 2 for name in roles}
    real = [sum(4 * moments[piece.name] * piece.tensor.numel() for piece in own) for own in division.everyone]
    assert list(state_bytes(config, "zero1", n)) == real
    calls = {flow.kind: flow.calls for flow in flows(config, "zero1", n)}
    assert calls["broadcast"] == sum(bool(own) for own in division.everyone)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("preset", ["cola-fan-muon", "refined-tied"])
def test_fsdp2_exchanges_the_matrices_that_muon_has_others_own(preset: str, n: int) -> None:
    model, config = built(preset), config_of(preset, "train.device=cpu")
    roles = model.param_roles()
    names = route(model, roles, muon=True).muon
    parameters = dict(model.named_parameters())
    own = [parameters[name].detach()[slice(*chunk(len(parameters[name]), n, 0))] for name in names]
    group = {"params": [nn.Parameter(p) for p in own], "matrix_rows": [roles[name].matrix_rows for name in names]}
    optim = config.optim
    muon = ShardedMuon(
        [group],
        world=Imagined(0, n),
        lr=optim.lr,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        weight_decay=optim.weight_decay,
        ns_steps=optim.ns_steps,
        ns_coefficients=optim.ns_coefficients,
        update_scaling=optim.update_scaling,
    )
    moved = sum(
        m.entries(rank)
        for owner, matrices in enumerate(muon._owned(muon.param_groups[0]))
        for m in matrices
        for rank in range(n)
        if rank != owner
    )
    assert sent_bytes(config, "fsdp2", n, kind="all-to-all") == pytest.approx(2 * 4 * moved / n, rel=1e-14)


# How long a step takes.

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
H100_TOKENS_PER_S = {"original": 210_916, "cola-smollm2": 293_171}
"""Measured as those of H200's ``after_training``, on an H100 80GB."""
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
    after_training = next(report for command, report in H200.items() if "after_training" in command)["results"]
    h200 = {r["preset"]: r["train_tokens_per_s"] for r in after_training if "train_tokens_per_s" in r}
    return [
        f"**original** ({total_params(original.config.model) / 1e6:.1f}M parameters",
        f"**cola-smollm2-muon** ({total_params(cola.config.model) / 1e6:.1f}M",
        f"**1B** ({total_params(one_b.config.model):,} parameters",
        f"at the {reached_flops_per_s() / 1e12:.0f} TFLOP/s that original reaches",
        f"{flops.model_flops / 1e12:.0f} TFLOP and Newton–Schulz {flops.newton_schulz / 1e12:.0f}",
        *(
            f"{name} {16_384e3 / H100_TOKENS_PER_S[name]:.1f} ms there and {16_384e3 / h200[name]:.1f} ms on the H200"
            for name in ("original", "cola-smollm2")
        ),
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
    assert first_slower_than_ddp(cases()[2], "zero1") is None


if __name__ == "__main__":
    print(golden(), sent_table(), time_table(), cards_table(), "\n".join(figures()), sep="\n")
