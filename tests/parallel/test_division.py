"""Who holds and updates what: every row somebody's and nobody else's, in shares as equal as they can be."""

from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise, product
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from colakit.analysis.sharding import balanced, chunk, poured
from colakit.build import build_model, build_optimizer, build_replica, lm_config
from colakit.config.load import resolve
from colakit.config.presets import preset_names
from colakit.config.schema import RunConfig
from colakit.model.lm import LM
from colakit.optim.combined import CombinedOptimizer
from colakit.optim.muon import Muon
from colakit.optim.pieces import ByOwner
from colakit.optim.sharded_muon import ShardedMuon
from colakit.parallel.world import World
from colakit.parallel.wrap import OwnerReplica
from colakit.records.run import OptimizerPart
from colakit.train.summary import shared_costs
from tests.model.tiny import MUON_PRESETS
from tests.parallel.pool import Pool
from tests.parallel.runs import CPU, go, loader_of, step_of, tiny_config, weights

COSTS = st.integers(0, 10**13)


@given(st.lists(COSTS, max_size=40), st.integers(1, 9))
def test_each_has_an_owner_and_nobody_much_more_than_a_share(costs: list[int], n: int) -> None:
    """Graham's first bound: before the last one that the fullest got, nobody had less than it."""
    owners = balanced(costs, n)
    assert len(owners) == len(costs)
    assert set(owners) <= set(range(n))
    assert n * max(loads_of(costs, owners, n)) <= sum(costs) + (n - 1) * max(costs, default=0)


@given(st.lists(COSTS, max_size=6), st.integers(2, 3))
def test_the_fullest_has_at_most_a_third_more_than_need_be(costs: list[int], n: int) -> None:
    """Graham's second bound, of the dearest first: 4/3 − 1/(3·n) of the best there is, found by trying all."""
    best = min(max(loads_of(costs, owners, n)) for owners in product(range(n), repeat=len(costs)))
    assert 3 * n * max(loads_of(costs, balanced(costs, n), n)) <= (4 * n - 1) * best


def loads_of(costs: Sequence[int], owners: Sequence[int], n: int) -> list[int]:
    return [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(n)]


def test_the_dearest_go_first_and_equal_ones_round() -> None:
    assert balanced([5, 5, 5, 5, 5], 3) == [0, 1, 2, 0, 1]
    assert balanced([1, 7, 2, 2, 3], 2) == [0, 0, 1, 1, 1]
    assert balanced([], 2) == []


TENSORS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 500)), max_size=12)
HELD = st.lists(st.integers(0, 40_000), min_size=1, max_size=8)


@given(TENSORS, HELD)
def test_every_row_is_poured_once_and_in_order(tensors: list[tuple[int, int]], held: list[int]) -> None:
    cuts = poured([rows for rows, _ in tensors], [size for _, size in tensors], held)
    assert len(cuts) == len(held)
    in_order = [cut for own in cuts for cut in own]
    assert [(c.index, row) for c in in_order for row in range(c.start, c.stop)] == [
        (index, row) for index, (rows, _) in enumerate(tensors) for row in range(rows)
    ]
    assert all(c.start < c.stop for c in in_order)
    assert all(own == sorted(own, key=lambda c: (c.index, c.start)) for own in cuts)


@given(TENSORS, HELD)
def test_what_is_poured_comes_to_one_level(tensors: list[tuple[int, int]], held: list[int]) -> None:
    """But for a row: who holds more than the level gets nothing, who holds less reaches it."""
    sizes = [size for _, size in tensors]
    cuts = poured([rows for rows, _ in tensors], sizes, held)
    got = [sum((c.stop - c.start) * sizes[c.index] for c in own) for own in cuts]
    amount = sum(rows * size for rows, size in tensors)
    level = level_of(amount, held)
    row = max(sizes, default=0)
    for own, before in zip(got, held, strict=True):
        assert abs(own - max(0.0, level - before)) <= row + 1e-6


def level_of(amount: float, held: list[int]) -> float:
    """To which all are filled, found by halving."""
    low, high = float(min(held)), float(max(held) + amount)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(max(0.0, middle - h) for h in held) < amount else (low, middle)
    return high


@given(st.integers(0, 3000), st.integers(1, 17))
def test_rows_are_chunked_as_torch_does(rows: int, n: int) -> None:
    bounds = [chunk(rows, n, rank) for rank in range(n)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == rows
    assert all(one[1] == two[0] for one, two in pairwise(bounds))
    theirs = [len(part) for part in torch.empty(rows).chunk(n)] if rows else []
    assert [stop - start for start, stop in bounds if stop > start] == theirs


class Rank(World):
    """One of several, as far as it is to be known who has what."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@cache
def full(preset: str, *sets: str) -> tuple[RunConfig, LM]:
    """A preset as it is shipped, without memory."""
    config = resolve(preset, sets=sets).config
    with torch.device("meta"):
        return config, LM(lm_config(config.model, "sdpa"))


def by_owner(preset: str, rank: int, size: int, *sets: str) -> CombinedOptimizer:
    """What one process has where ZeRO-1 divides a preset as it is shipped."""
    config, model = full(preset, *sets)
    roles = model.param_roles()
    divide = partial(ByOwner, roles=roles, config=config.optim, world=Rank(rank, size))
    return CombinedOptimizer(model, roles, config.optim, divide)


def state_bytes(optimizer: CombinedOptimizer) -> int:
    """Of all entries, as they are behind the first step."""
    optimizer.reset(with_state=True)
    return sum(entry.tensor.nbytes for entry in optimizer.entries())


def alone(preset: str, *sets: str) -> CombinedOptimizer:
    config, model = full(preset, *sets)
    return CombinedOptimizer(model, model.param_roles(), config.optim)


def largest_of_muon(preset: str, *sets: str) -> int:
    """Bytes of the state of the largest tensor that ZeRO-1 leaves whole."""
    optimizer = alone(preset, *sets)
    return max((piece.parameter.nbytes for piece in optimizer.division.muon), default=0)


NUMBERS = (2, 3, 4, 8)


@pytest.mark.parametrize("preset", preset_names())
def test_zero1_holds_a_share_of_the_state_or_one_tensor(preset: str) -> None:
    """At full size."""
    total, largest = state_bytes(alone(preset)), largest_of_muon(preset)
    for size in NUMBERS:
        held = [state_bytes(by_owner(preset, rank, size)) for rank in range(size)]
        assert max(held) <= max(1.1 * total / size, largest), size
        # One by one: the step numbers of AdamW are each process's own.
        assert total <= sum(held) <= 1.0001 * total, size


def test_one_tensor_may_be_more_than_a_share() -> None:
    """A single block of a dense model with few tokens, of which somebody has the largest tensor."""
    sets = ("optim.optimizer=muon", "model.n_layers=1", "model.vocab_size=512")
    total, largest = state_bytes(alone("original", *sets)), largest_of_muon("original", *sets)
    held = [state_bytes(by_owner("original", rank, 4, *sets)) for rank in range(4)]
    assert largest > 1.1 * total / 4
    assert max(held) <= 1.001 * largest


@pytest.mark.parametrize("preset", preset_names())
def test_zero1_gives_each_row_to_one_process(preset: str) -> None:
    _, model = full(preset)
    optimizers = [by_owner(preset, rank, 3) for rank in range(3)]
    seen: dict[str, list[tuple[int, int]]] = {}
    for optimizer in optimizers:
        division = optimizer.division
        assert isinstance(division, ByOwner)
        assert {piece.name for piece in division.muon} == {
            piece.name for piece in division.muon if len(piece.tensor) == len(piece.parameter)
        }, "no matrix is cut"
        for piece in (*division.muon, *division.adamw):
            seen.setdefault(piece.name, []).append((piece.start, piece.start + len(piece.tensor)))
    for name, parameter in model.named_parameters():
        bounds = [0, *(edge for part in sorted(seen.pop(name)) for edge in part), len(parameter)]
        assert all(start == stop for start, stop in zip(bounds[::2], bounds[1::2], strict=True)), name
    assert not seen


@pytest.mark.parametrize("preset", MUON_PRESETS)
@pytest.mark.parametrize("size", NUMBERS)
def test_newton_schulz_is_divided_evenly(preset: str, size: int) -> None:
    """At full size nobody has as much as 1 % more than a share, whether parameters are divided or matrices."""
    owners = [by_owner(preset, rank, size).parts.get("muon") for rank in range(size)]
    loads = [owner.flops_per_step() for owner in owners if isinstance(owner, Muon)]
    whole = alone(preset).parts["muon"]
    assert isinstance(whole, Muon)
    assert sum(loads) == whole.flops_per_step()
    assert max(loads) <= 1.01 * sum(loads) / size
    config, model = full(preset)
    sharded = [flops_of_rows(model, config, Rank(rank, size)) for rank in range(size)]
    assert sum(sharded) == whole.flops_per_step()
    assert max(sharded) <= 1.01 * sum(sharded) / size


def flops_of_rows(model: LM, config: RunConfig, world: World) -> int:
    """Newton–Schulz of one process where FSDP2 divides the model."""
    roles, optim = model.param_roles(), config.optim
    names = alone(config.preset).routing.muon
    own = []
    for name in names:
        rows, width = model.get_parameter(name).shape
        start, stop = chunk(rows, world.size, world.rank)
        own.append(nn.Parameter(torch.empty(stop - start, width, device="meta")))
    options = {
        "lr": optim.lr,
        "momentum": optim.momentum,
        "nesterov": optim.nesterov,
        "weight_decay": optim.weight_decay,
        "ns_steps": optim.ns_steps,
        "ns_coefficients": optim.ns_coefficients,
        "update_scaling": optim.update_scaling,
    }
    group = {"params": own, "matrix_rows": [roles[name].matrix_rows for name in names]}
    return ShardedMuon([group], world=world, **options).flops_per_step()


def sharded_state(world: World, preset: str) -> tuple[int, int, int]:
    """Bytes of optimizer state and of weights that one process has under FSDP2; rows of its own."""
    config, model = full(preset, "parallel.strategy=fsdp2")
    optimizer = build_optimizer(model, config.optim, build_replica(model, config, CPU, world), world)
    pieces = (*optimizer.division.muon, *optimizer.division.adamw)
    full.cache_clear()  # the model is divided now
    return state_bytes(optimizer), sum(p.tensor.nbytes for p in pieces), sum(len(p.tensor) for p in pieces)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("preset", ["original", "cola-fan", "cola-fan-muon", "refined-tied"])
def test_fsdp2_divides_the_state_and_the_weights(pool: Pool, preset: str, size: int) -> None:
    """At full size, within 10 %."""
    _, model = full(preset)
    total, n_rows = state_bytes(alone(preset)), sum(len(p) for p in model.parameters())
    n_bytes = sum(4 * prod(p.shape) for p in model.parameters())
    found = pool.run(size, sharded_state, preset)
    for state, held, _ in found:
        assert 0.9 * total / size <= state <= 1.1 * total / size
        assert 0.9 * n_bytes / size <= held <= 1.1 * n_bytes / size
    assert sum(rows for _, _, rows in found) == n_rows
    assert sum(held for _, held, _ in found) == n_bytes


def left_by_a_backward_pass(world: World, config: RunConfig) -> tuple[set[str], set[str]]:
    """Parameters of which there is a gradient, and those of which this process updates something."""
    step = step_of(config, world)
    step.accumulate(loader_of(config, world).micro_batches(0, 2), 100)
    step.replica.finish()
    assert isinstance(step.replica, OwnerReplica)
    owners = {p: {each.owner for each in owned} for p, owned in step.replica._owned.items()}
    named = list(step.model.named_parameters())
    return {n for n, p in named if p.grad is not None}, {n for n, p in named if world.rank in owners[p]}


def test_gradients_that_another_process_uses_are_dropped(pool: Pool) -> None:
    """That is what ZeRO-1 saves of them."""
    found = pool.run(3, left_by_a_backward_pass, tiny_config("cola-fan-muon", "parallel.strategy=zero1"))
    for kept, own in found:
        assert kept == own
    assert found[0][0] != found[1][0]


def weights_at_first(world: World, config: RunConfig) -> dict[str, torch.Tensor]:
    """Of models that were drawn from one seed, with another outcome, as other kernels may have."""
    model = build_model(config, CPU)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-3 * world.rank
    build_replica(model, config, CPU, world)
    return weights(model, world)


@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
def test_all_begin_with_the_main_process_s_weights(pool: Pool, strategy: str) -> None:
    first, *others = pool.run(3, weights_at_first, tiny_config("refined-tied", f"parallel.strategy={strategy}"))
    for other in others:
        assert all(torch.equal(tensor, first[name]) for name, tensor in other.items())


def costs(world: World, strategy: str) -> tuple[tuple[OptimizerPart, ...], tuple[OptimizerPart, ...]]:
    """Of this process, and of all."""
    config = tiny_config("cola-fan-muon", f"parallel.strategy={strategy}")
    step = step_of(config, world)
    go(step, config, range(1))
    return step.optimizer.costs(), shared_costs(step.optimizer)


@pytest.mark.parametrize("strategy", ["zero1", "fsdp2"])
def test_a_run_s_optimizer_costs_what_all_shares_do(pool: Pool, strategy: str) -> None:
    (_, alone), *_ = pool.run(1, costs, "ddp")
    found = pool.run(3, costs, strategy)
    for _, shared in found:
        assert [(p.name, p.parameters) for p in shared] == [(p.name, p.parameters) for p in alone]
        for part, own in zip(shared, zip(*(own for own, _ in found), strict=True), strict=True):
            assert part.ms == max(p.ms for p in own)
        for part, expected in zip(shared, alone, strict=True):
            assert part.flops == expected.flops
