"""Batches as functions of the step."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from colakit.data.loader import Batch, TrainLoader, held_out_batches
from colakit.data.packing import pack
from colakit.loss import IGNORE

SEQ_LEN = 5


def blocks(n_tokens: int) -> list[NDArray[np.int32]]:
    """The blocks of a stream 1, 2, 3, … that ends with token 0."""
    return list(pack([list(range(1, n_tokens))], 0, SEQ_LEN))


def real_targets(batches: list[Batch]) -> list[int]:
    return [int(t) for batch in batches for t in batch.targets.flatten() if t != IGNORE]


def test_each_epoch_visits_each_block_once_in_another_order() -> None:
    loader = TrainLoader(blocks(66), batch_size=4, seed=3)  # 13 blocks: epochs end inside a batch
    seen = [index for step in range(13) for index in loader.blocks_of(step)]
    epochs = [seen[start : start + 13] for start in range(0, len(seen), 13)]
    assert len(epochs) == 4
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert list(range(13)) not in epochs


def test_the_order_is_a_function_of_seed_and_step() -> None:
    source = blocks(66)
    forwards = [TrainLoader(source, 4, seed=3).blocks_of(step) for step in range(9)]
    one = TrainLoader(source, 4, seed=3)
    assert [one.blocks_of(step) for step in reversed(range(9))] == forwards[::-1]
    assert [TrainLoader(source, 4, seed=4).blocks_of(step) for step in range(9)] != forwards
    pairs = TrainLoader(source, 2, seed=3)
    assert [i for step in range(18) for i in pairs.blocks_of(step)] == [i for batch in forwards for i in batch]


def test_the_order_is_pinned() -> None:
    """A change of it would change the loss of every run at the same seed."""
    assert TrainLoader(blocks(66), 5, seed=0).blocks_of(0) == [10, 2, 7, 4, 5]


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 7, 50])
def test_micro_batches_joined_are_the_batch(micro_batch_size: int) -> None:
    loader = TrainLoader(blocks(64), batch_size=7, seed=1)
    whole = loader.micro_batches(5, 7)
    parts = loader.micro_batches(5, micro_batch_size)
    assert len(whole) == 1
    assert all(len(part.tokens) <= micro_batch_size for part in parts)
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole[0].tokens)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole[0].targets)


def test_targets_are_the_next_tokens_and_padding_does_not_count() -> None:
    source = blocks(9)  # 1 … 8 and 0: the second block has three targets
    batch = next(held_out_batches(source, batch_size=2, max_tokens=100))
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]]
    assert batch.targets.tolist() == [[2, 3, 4, 5, 6], [7, 8, 0, IGNORE, IGNORE]]
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.tokens.is_contiguous()


def test_held_out_batches_score_each_token_once_in_order() -> None:
    batches = list(held_out_batches(blocks(64), batch_size=4, max_tokens=63))
    assert [len(batch.tokens) for batch in batches] == [4, 4, 4, 1]
    assert real_targets(batches) == [*range(2, 64), 0]


@pytest.mark.parametrize(("max_tokens", "n_blocks"), [(1, 1), (5, 1), (9, 1), (10, 2), (62, 12)])
def test_a_capped_evaluation_takes_whole_blocks_from_everywhere(max_tokens: int, n_blocks: int) -> None:
    first = real_targets(list(held_out_batches(blocks(64), batch_size=4, max_tokens=max_tokens)))
    assert first == real_targets(list(held_out_batches(blocks(64), batch_size=3, max_tokens=max_tokens)))
    assert len(set(first)) == len(first)
    assert (n_blocks - 1) * SEQ_LEN < len(first) <= max(max_tokens, SEQ_LEN)
    if 1 < n_blocks < 12:
        assert first != list(range(2, 2 + len(first))), "not merely the beginning"


def test_no_blocks() -> None:
    assert list(held_out_batches([], batch_size=2, max_tokens=9)) == []
    with pytest.raises(ValueError, match="no block"):
        TrainLoader([], 2, 0)
