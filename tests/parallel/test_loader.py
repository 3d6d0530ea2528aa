"""Each process's share of a batch: together they are what one process reads, in its order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colakit.data.loader import TrainLoader
from colakit.parallel.world import ALONE, World
from tests.parallel.runs import loader_of, tiny_config

STEPS = 9


class Rank(World):
    """One of several."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def loaders(preset: str, size: int, *sets: str) -> list[TrainLoader]:
    config = tiny_config(preset, *sets)
    return [loader_of(config, Rank(rank, size)) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("preset", ["original", "smollm2-stages"])
def test_the_shares_of_a_batch_are_the_batch(preset: str, size: int) -> None:
    """Over several epochs, and all stages of a mixture."""
    one = loader_of(tiny_config(preset, f"train.max_steps={STEPS}"), ALONE)
    shares = loaders(preset, size, f"train.max_steps={STEPS}")
    for step in range(STEPS):
        parts = [loader.blocks_of(step) for loader in shares]
        assert {len(part) for part in parts} == {12 // size}
        assert [block for part in parts for block in part] == one.blocks_of(step)
    assert all(loader.epochs(STEPS) == one.epochs(STEPS) for loader in shares)
    assert max(one.epochs(STEPS).values()) > 1


@pytest.mark.parametrize("size", [2, 3, 4])
def test_no_block_is_read_twice_in_an_epoch(size: int) -> None:
    """29 blocks, of which the first two batches are 24."""
    seen = [
        block.number for step in range(2) for loader in loaders("original", size) for block in loader.blocks_of(step)
    ]
    assert len(set(seen)) == len(seen) == 24


@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 40))
def test_micro_batches_are_the_same_sequences(size: int, micro: int, step: int) -> None:
    """However many there are in each process."""
    parts = [batch for loader in loaders("original", size) for batch in loader.micro_batches(step, micro)]
    (whole,) = loader_of(tiny_config("original"), ALONE).micro_batches(step, 12)
    assert max(len(batch.tokens) for batch in parts) <= micro
    assert torch.equal(torch.cat([batch.tokens for batch in parts]), whole.tokens)
    assert torch.equal(torch.cat([batch.targets for batch in parts]), whole.targets)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 12 does not divide by 5 processes"):
        loaders("original", 5)
