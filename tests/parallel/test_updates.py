"""From equal gradients several processes make the update that one makes, to the last bit.

But for sizes that no preset has. On a CPU PyTorch's fused AdamW takes what is left over behind the last whole vector of
a matrix, 15 numbers at most, by other instructions, which round otherwise: where its rows hold no whole vectors, others
are left over where it is cut. And MKL's products of some very small matrices, as of 11 by 44, depend on where in a
stack one lies, so that the sizes here are others.
"""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from colakit.analysis.sharding import chunk
from colakit.build import build_model, build_optimizer, build_replica
from colakit.config.schema import OptimConfig, RunConfig
from colakit.model.linear import ParamRole
from colakit.optim.combined import CombinedOptimizer
from colakit.parallel.world import World
from tests.parallel.pool import Pool
from tests.parallel.runs import CPU, optimizer_state, slow, tiny_config, weights

_LEFT_OVER = 15
"""Numbers behind the last whole vector of 16."""
_ULPS = 4e-7
"""A few roundings of float32."""

SIZES = {
    # Ranks of 21 and 19; heads, biases and FAN's features divide among no number of processes.
    "odd": {"d_model": 84, "n_layers": 2, "n_heads": 6, "n_kv_heads": 2, "d_ff": 76, "vocab_size": 67},
    # Whole vectors in the rows of each process, of 2, 3 and 4.
    "sixteens": {"d_model": 192, "n_layers": 1, "n_heads": 4, "n_kv_heads": 4, "d_ff": 384, "vocab_size": 192},
    # A block as the presets have it.
    "real": {"d_model": 768, "n_layers": 1, "n_heads": 12, "n_kv_heads": 6, "d_ff": 2048, "vocab_size": 1003},
}
OPTIONS = {
    "adamw": (),
    "muon": ("optim.optimizer=muon",),
    "plain muon": ("optim.optimizer=muon", "optim.nesterov=false", "optim.update_scaling=original"),
}


@dataclass(frozen=True)
class Updated:
    """Weights and optimizer state, whole; and by parameter, what one process each updates, as numbers [start, stop)."""

    weights: dict[str, Tensor]
    state: dict[str, Tensor]
    parts: dict[str, list[tuple[int, int]]]
    by_muon: frozenset[str]


def updated(world: World, config: RunConfig, n_updates: int) -> Updated:
    """What comes of gradients that are the same for any number of processes."""
    model = build_model(config, CPU)
    replica = build_replica(model, config, CPU, world)
    optimizer = build_optimizer(model, config.optim, replica, world)
    for step in range(n_updates):
        for i, p in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(1000 * step + i)
            p.grad = _share_of(torch.randn(p.shape, generator=generator), p, world)
        optimizer.attach()
        optimizer.step()
        optimizer.zero_grad()
    parts: dict[str, list[tuple[int, int]]] = {}
    for name, start, stop in (part for own in optimizer.division.world.gather(_bounds(optimizer)) for part in own):
        parts.setdefault(name, []).append((start, stop))
    return Updated(weights(model, world), optimizer_state(optimizer), parts, frozenset(optimizer.routing.muon))


def _share_of(gradient: Tensor, parameter: nn.Parameter, world: World) -> Tensor:
    if not isinstance(parameter, DTensor):
        return gradient
    start, stop = chunk(len(gradient), world.size, world.rank)
    return DTensor.from_local(
        gradient[start:stop].clone(),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=gradient.shape,
        stride=gradient.stride(),
    )


def _bounds(optimizer: CombinedOptimizer) -> list[tuple[str, int, int]]:
    pieces = (*optimizer.division.muon, *optimizer.division.adamw)
    widths = [piece.parameter.shape[1:].numel() for piece in pieces]
    return [(p.name, p.start * w, p.start * w + p.tensor.numel()) for p, w in zip(pieces, widths, strict=True)]


def config_of(preset: str, sizes: str, *sets: str) -> RunConfig:
    shape = [f"model.{name}={size}" for name, size in SIZES[sizes].items()]
    return tiny_config(preset, *shape, "optim.optimizer=adamw", *sets)


@cache
def alone(pool: Pool, preset: str, sizes: str, *sets: str) -> Updated:
    """What one process makes of them."""
    return pool.run(1, updated, config_of(preset, sizes, *sets), 3)[0]


def check_exact(pool: Pool, strategy: str, size: int, preset: str, sizes: str, *sets: str) -> None:
    one = alone(pool, preset, sizes, *sets)
    config = config_of(preset, sizes, *sets, f"parallel.strategy={strategy}")
    first, *others = pool.run(size, updated, config, 3)
    for other in others:
        assert all(torch.equal(tensor, first.weights[name]) for name, tensor in other.weights.items())
    for name, expected in one.weights.items():
        _check(
            first.weights[name], expected, [] if name in one.by_muon or expected.ndim == 1 else first.parts[name], name
        )
    assert first.state.keys() == one.state.keys()
    for name, expected in one.state.items():
        is_adamw, parameter = name.startswith("adamw."), name.partition(".")[2].rpartition(".")[0]
        _check(first.state[name], expected, first.parts[parameter] if is_adamw and expected.ndim > 1 else [], name)


def _check(found: Tensor, expected: Tensor, parts: list[tuple[int, int]], name: str) -> None:
    """They are equal, but for what may be left over of `parts` of a matrix that AdamW updates."""
    found, expected = found.flatten(), expected.flatten()
    is_left_over = torch.zeros(len(expected), dtype=torch.bool)
    for start, stop in (*parts, *([(0, len(expected))] if parts else [])):
        is_left_over[stop - (stop - start) % (_LEFT_OVER + 1) : stop] = True
    assert torch.equal(found[~is_left_over], expected[~is_left_over]), name
    torch.testing.assert_close(found, expected, rtol=_ULPS, atol=1e-8, msg=lambda m: f"{name}: {m}")


CASES = pytest.mark.parametrize(
    ("strategy", "size"), [("zero1", 2), ("zero1", 3), ("fsdp2", 2), ("fsdp2", 3), ("fsdp2", 4)]
)


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        *(("cola-fan", options) for options in OPTIONS),
        slow("cola-fan-atf", "muon"),
        slow("original", "plain muon"),
        slow("refined-tied", "muon"),
    ],
)
@CASES
def test_the_update_is_that_of_one_process_to_the_bit(
    pool: Pool, strategy: str, size: int, preset: str, options: str
) -> None:
    check_exact(pool, strategy, size, preset, "odd", *OPTIONS[options])


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "options"), [("cola-fan", "muon"), ("original", "plain muon")])
@pytest.mark.parametrize(("strategy", "size"), [("zero1", 3), ("fsdp2", 4)])
def test_the_update_of_a_whole_block_is_too(pool: Pool, strategy: str, size: int, preset: str, options: str) -> None:
    check_exact(pool, strategy, size, preset, "real", *OPTIONS[options])


@CASES
def test_where_whole_vectors_are_cut_no_number_is_left_over(pool: Pool, strategy: str, size: int) -> None:
    """AdamW is exact in every number."""
    sets = ("model.norm=pre",)
    one = alone(pool, "original", "sixteens", *sets)
    config = config_of("original", "sixteens", *sets, f"parallel.strategy={strategy}")
    for found in pool.run(size, updated, config, 3):
        for name, expected in one.weights.items():
            assert torch.equal(found.weights[name], expected), name
        for name, expected in one.state.items():
            assert torch.equal(found.state[name], expected), name


def muon_of(rows: tuple[int, ...], gradient: Tensor) -> Tensor:
    """What Muon makes of zeros in one update, if its matrices have these rows."""

    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros_like(gradient))

    model = Toy()
    model.w.grad = gradient.clone()
    optimizer = CombinedOptimizer(model, {"w": ParamRole("matrix", rows)}, OptimConfig(optimizer="muon"))
    optimizer.step()
    return model.w.detach()


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("shape", [(84, 21), (40, 84), (76, 19)])
def test_a_muon_of_shards_would_not_pass(shape: tuple[int, int], size: int) -> None:
    """Orthogonalised by themselves they come to something else altogether."""
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    shards = tuple(stop - start for start, stop in (chunk(shape[0], size, rank) for rank in range(size)))
    whole, naive = muon_of((shape[0],), gradient), muon_of(shards, gradient)
    assert float((naive - whole).norm() / whole.norm()) > 0.2
