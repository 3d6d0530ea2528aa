"""Several processes train the model that one would: with any strategy, of any number, by equal batches.

Tolerance. Sums of float32 are rounded otherwise where their parts are added in another order: 1e-7 of a loss or norm,
and what ten updates make of it, 3e-5 of a parameter's way so far. A part that is missing or counted twice, or a mean in
place of a sum, is off by a tenth and more of the norm, and of the way.
"""

from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

from colakit.checkpoint import rng
from colakit.config.presets import preset_names
from colakit.parallel.world import World
from colakit.train.state import restore_rng
from tests.parallel.pool import Pool
from tests.parallel.runs import STRATEGIES, Course, course, slow, tiny_config

LOSS, NORM, WAY = 1e-6, 2e-6, 2e-4


@cache
def alone(pool: Pool, preset: str, n_steps: int, *sets: str) -> Course:
    """What one process comes to."""
    return pool.run(1, course, tiny_config(preset, *sets), n_steps)[0]


def check_equal(many: list[Course], one: Course) -> None:
    assert [r.tokens for r in many[0].results] == [r.tokens for r in one.results]
    for mine, theirs in zip(many[0].results, one.results, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=LOSS)
        assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=NORM)
        assert mine.accuracy == theirs.accuracy
        assert mine.lr == theirs.lr
        assert mine.skipped is None
    for name, end in one.end.items():
        start = one.start[name]
        assert torch.equal(many[0].start[name], start), name
        way = float((end - start).norm())
        assert way > 0.0, name
        assert float((many[0].end[name] - end).norm()) <= WAY * way, name
    for other in many[1:]:
        assert other.results == many[0].results, "all know the same"
        assert all(torch.equal(tensor, many[0].end[name]) for name, tensor in other.end.items())


def check_course(pool: Pool, size: int, n_steps: int, strategy: str, preset: str, *sets: str) -> None:
    config = tiny_config(preset, *sets, f"parallel.strategy={strategy}")
    check_equal(pool.run(size, course, config, n_steps), alone(pool, preset, n_steps, *sets))


AT_ONCE = [("ddp", 2), ("zero1", 2), ("zero1", 3), ("fsdp2", 2), ("fsdp2", 4)]
REST = [case for case in product(STRATEGIES, (2, 3, 4)) if case not in AT_ONCE]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("strategy", "size"), [*AT_ONCE, *(slow(*case) for case in REST)])
def test_ten_steps_are_those_of_one_process(pool: Pool, strategy: str, size: int, optimizer: str) -> None:
    """Of two or more micro-batches in each process, with gradients clipped in some steps, and weights that divide
    unevenly."""
    one = alone(pool, "cola-fan-muon", 10, f"optim.optimizer={optimizer}")
    norms = [result.grad_norm for result in one.results]
    assert min(norms) < 0.6 < max(norms), "some are clipped, some are not"
    check_course(pool, size, 10, strategy, "cola-fan-muon", f"optim.optimizer={optimizer}")


APART = ("data.attend_across_documents=false",)
VARIANTS = [*((preset, ()) for preset in preset_names()), ("cola-fan-muon", APART), ("cola-m", APART)]


@pytest.mark.parametrize(("preset", "sets"), VARIANTS)
@pytest.mark.parametrize("strategy", [slow("ddp"), slow("zero1"), "fsdp2"])
def test_every_preset_trains_as_in_one_process(pool: Pool, strategy: str, preset: str, sets: tuple[str, ...]) -> None:
    """Two steps, which go through all of the stages of a preset that has some."""
    check_course(pool, 2, 2, strategy, preset, "train.max_steps=2", *sets)


@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
def test_tied_and_recomputed_weights_and_separate_documents_do(pool: Pool, strategy: str) -> None:
    """As above, of the presets that are most unlike the others."""
    for preset, sets in (("refined-tied", ()), ("cola-m", APART), ("smollm2-stages", ())):
        check_course(pool, 2, 2, strategy, preset, "train.max_steps=2", *sets)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_with_dropout_all_have_the_same_weights_and_the_same_again(pool: Pool, strategy: str) -> None:
    config = tiny_config("cola-fan-dropout-muon", f"parallel.strategy={strategy}", dropout=True)
    first, second = pool.run(2, course, config, 2)
    again, _ = pool.run(2, course, config, 2)
    assert first.results == second.results == again.results
    for name, tensor in first.end.items():
        assert torch.equal(tensor, second.end[name]), name
        assert torch.equal(tensor, again.end[name]), name
    dry = alone(pool, "cola-fan-dropout-muon", 2)
    assert abs(first.results[0].grad_norm / dry.results[0].grad_norm - 1) > 1e-3, "dropout is there"


def draws(world: World, state: dict[str, Any] | None) -> tuple[list[float], list[Any]]:
    """What is drawn first; then, of all processes, where their generators stand."""
    restore_rng(state, tiny_config("cola-fan-dropout-muon", "train.seed=5"), world)
    return torch.rand(4).tolist(), world.gather(rng.capture())


def test_each_process_draws_its_own_dropout_and_goes_on_with_it(pool: Pool) -> None:
    first = [drawn for drawn, _ in pool.run(3, draws, None)]
    (by_one,) = pool.run(1, draws, None)
    assert first[0] == by_one[0]
    # In their second step, whatever has been drawn since.
    known, *others = pool.run(3, draws, None)[0][1]
    saved = {"rng": known, "rng_of_others": others, "step": 7}
    second = [drawn for drawn, _ in pool.run(3, draws, saved)]
    assert second == [drawn for drawn, _ in pool.run(3, draws, saved)]
    # One more than before has one that nobody has drawn.
    fourth = pool.run(4, draws, saved)[3][0]
    unlike = [*first, *second, fourth, pool.run(4, draws, {**saved, "step": 8})[3][0]]
    assert len({tuple(drawn) for drawn in unlike}) == len(unlike)
    assert [drawn for drawn, _ in pool.run(4, draws, saved)][:3] == second
