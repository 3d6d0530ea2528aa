"""What is sent and kept, against sums written out by hand and against who divides it.

With real processes: tests/parallel/test_traffic.py. ``python tests/analysis/test_communication.py`` prints the golden
table.
"""

from functools import cache

import pytest
import torch
from torch import nn

from colakit.analysis.communication import flows, sent_bytes
from colakit.analysis.params import total_params
from colakit.analysis.sharding import chunk
from colakit.analysis.shares import Strategy, state_bytes, stored
from colakit.build import lm_config
from colakit.config.load import resolve
from colakit.config.presets import preset_names
from colakit.config.schema import RunConfig
from colakit.model.lm import LM
from colakit.optim.groups import route
from colakit.optim.pieces import ByOwner
from colakit.optim.sharded_muon import ShardedMuon
from colakit.parallel.world import World

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


if __name__ == "__main__":
    print(golden())
