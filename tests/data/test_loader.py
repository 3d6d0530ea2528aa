"""Batches as functions of the step."""

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from colakit.data.loader import Batch, Order, TrainLoader, held_out_batches, make_batch, permutation
from colakit.data.mixture import Schedule
from colakit.data.packing import PAD, Blocks, Packed, Padded
from colakit.loss import IGNORE
from tests.data.stores import EOT, make_store

SEQ_LEN = 5
BlocksOf = Callable[[int], Packed]


@pytest.fixture
def blocks(tmp_path_factory: pytest.TempPathFactory) -> BlocksOf:
    """The blocks of a stream 1, 2, 3, … of `n_tokens` that ends with token 0."""
    folder, numbers = tmp_path_factory.mktemp("stores"), count()

    def make(n_tokens: int) -> Packed:
        store = make_store(folder / str(next(numbers)), [[list(range(1, n_tokens))]])
        return Packed(store, np.ones(len(store), dtype=bool), SEQ_LEN)

    return make


def single(source: Blocks, batch_size: int, seed: int, **others: Any) -> TrainLoader:  # Any: the loader's own keywords
    """A loader of one source."""
    return TrainLoader({"data": source}, Schedule(["data"], [{"data": 1.0}], [], seed), batch_size, seed, **others)


def numbers_of(loader: TrainLoader, *steps: int) -> list[int]:
    return [block.number for step in steps for block in loader.blocks_of(step)]


def real_targets(batches: list[Batch]) -> list[int]:
    return [int(t) for batch in batches for t in batch.targets.flatten() if t != IGNORE]


def test_each_epoch_visits_each_block_once_in_another_order(blocks: BlocksOf) -> None:
    loader = single(blocks(66), batch_size=4, seed=3)  # 13 blocks: epochs end inside a batch
    seen = numbers_of(loader, *range(13))
    epochs = [seen[start : start + 13] for start in range(0, len(seen), 13)]
    assert len(epochs) == 4
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert list(range(13)) not in epochs


def test_the_order_is_a_function_of_seed_and_step(blocks: BlocksOf) -> None:
    source = blocks(66)
    forwards = [single(source, 4, seed=3).blocks_of(step) for step in range(9)]
    one = single(source, 4, seed=3)
    assert [one.blocks_of(step) for step in reversed(range(9))] == forwards[::-1]
    assert [single(source, 4, seed=4).blocks_of(step) for step in range(9)] != forwards
    pairs = single(source, 2, seed=3)
    assert [i for step in range(18) for i in pairs.blocks_of(step)] == [i for batch in forwards for i in batch]


def test_the_order_is_pinned(blocks: BlocksOf) -> None:
    """A change of it would change the loss of every run at the same seed."""
    assert numbers_of(single(blocks(66), 5, seed=0), 0) == [10, 2, 7, 4, 5]


def test_the_order_of_a_mixture_is_pinned(blocks: BlocksOf) -> None:
    sources = {"web": blocks(66), "maths": blocks(31)}
    schedule = Schedule(["web", "maths"], [{"web": 0.7, "maths": 0.3}], [], seed=0)
    found = TrainLoader(sources, schedule, 8, seed=0).blocks_of(0)
    expected = "w0 w4 m3 w3 m1 w9 w6 w8"
    assert " ".join(f"{block.source[0]}{block.number}" for block in found) == expected


def test_sources_of_equal_length_are_read_in_different_orders(blocks: BlocksOf) -> None:
    """A source's own order depends on its name and the seed, not on the other sources or its share."""
    length = {"a": blocks(66), "b": blocks(66), "c": blocks(66)}

    def order(names: str, source: str, seed: int = 0) -> list[int]:
        weights = {name: 1.0 + ord(name) for name in names}
        loader = TrainLoader(length, Schedule(names, [weights], [], seed), 5, seed)
        drawn = [block.number for step in range(30) for block in loader.blocks_of(step) if block.source == source]
        return drawn[:13]

    assert order("ab", "a") == order("ac", "a") == order("cba", "a")
    assert order("ab", "a") != order("ab", "b")
    assert order("ab", "a") != order("ab", "a", seed=1)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 7, 50])
def test_micro_batches_joined_are_the_batch(blocks: BlocksOf, micro_batch_size: int) -> None:
    source = blocks(64)
    loader = single(source, batch_size=7, seed=1)
    whole = loader.micro_batches(5, 7)
    parts = loader.micro_batches(5, micro_batch_size)
    assert len(whole) == 1
    assert all(len(part.tokens) <= micro_batch_size for part in parts)
    assert len(parts) == -(-7 // micro_batch_size)
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole[0].tokens)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole[0].targets)
    assert torch.equal(whole[0].tokens, make_batch([source[i] for i in numbers_of(loader, 5)]).tokens)
    assert [[len(b.tokens) for b in step] for step in loader.steps(3, 6, micro_batch_size)] == [
        [len(part.tokens) for part in parts]
    ] * 3


def test_steps_are_those_that_are_asked_for(blocks: BlocksOf) -> None:
    loader = single(blocks(64), batch_size=3, seed=1)
    found = list(loader.steps(2, 5, 2))
    for step, batches in zip(range(2, 5), found, strict=True):
        for batch, again in zip(batches, loader.micro_batches(step, 2), strict=True):
            assert torch.equal(batch.tokens, again.tokens)


def test_processes_share_each_batch_in_their_order(blocks: BlocksOf) -> None:
    source = blocks(66)
    whole = numbers_of(single(source, 6, seed=3), 4)
    ranks = [single(source, 6, seed=3, global_rank=rank, world_size=3) for rank in range(3)]
    assert [numbers_of(rank, 4) for rank in ranks] == [whole[:2], whole[2:4], whole[4:]]
    with pytest.raises(ValueError, match="a batch of 6 does not divide by 4 processes"):
        single(source, 6, seed=3, world_size=4)


def test_epochs_count_each_source_by_itself(blocks: BlocksOf) -> None:
    sources = {"a": blocks(66), "b": blocks(21)}  # 13 blocks and 4
    schedule = Schedule("ab", [{"a": 1.0}, {"b": 1.0}], [13], seed=0)
    loader = TrainLoader(sources, schedule, 5, seed=0)
    assert loader.epochs(0) == {"a": 0.0, "b": 0.0}
    assert loader.epochs(2) == {"a": 10 / 13, "b": 0.0}
    assert loader.epochs(5) == {"a": 1.0, "b": 3.0}


def test_targets_are_the_next_tokens_and_padding_does_not_count(blocks: BlocksOf) -> None:
    source = blocks(9)  # 1 … 8 and 0: the second block has three targets
    batch = next(held_out_batches(source, batch_size=2, max_tokens=100))
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]]
    assert batch.targets.tolist() == [[2, 3, 4, 5, 6], [7, 8, 0, IGNORE, IGNORE]]
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.tokens.is_contiguous()
    assert batch.targets.is_contiguous()
    assert batch.document_starts is None


def test_documents_begin_at_the_end_of_text_before_them() -> None:
    """And never at padding, though it is shown to the model as token 0."""
    rows = [np.array(row, dtype=np.int32) for row in ([3, EOT, 4, EOT, 5], [EOT, 1, EOT, PAD, PAD])]
    batch = make_batch(rows, EOT)
    assert batch.document_starts is not None
    assert batch.document_starts.tolist() == [[False, True, False, True], [True, False, True, False]]
    assert batch.tokens.tolist() == [[3, 0, 4, 0], [0, 1, 0, 0]]
    assert batch.targets.tolist() == [[0, 4, 0, 5], [1, 0, IGNORE, IGNORE]]


def test_isolation_reaches_every_batch(blocks: BlocksOf) -> None:
    source = blocks(9)
    for batches in (
        single(source, 4, 0, isolate_eot=7).micro_batches(0, 4),
        list(held_out_batches(source, 2, 100, isolate_eot=7)),
    ):
        assert all(torch.equal(b.document_starts, b.tokens == 7) for b in batches if b.document_starts is not None)
        assert all(b.document_starts is not None for b in batches)


def test_the_loss_of_padded_documents_is_over_their_tokens_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    documents = [[1, 2], [], [3, 4, 5, 6, 7, 8], [9]]
    store = make_store(tmp_path_factory.mktemp("store") / "s", [documents])
    source = Padded(store, np.ones(4, dtype=bool), 4, EOT)
    batches = list(held_out_batches(source, 2, max_tokens=100))
    assert real_targets(batches) == [1, 2, EOT, 3, 4, 5, 6, 9, EOT]
    assert len(real_targets(batches)) == source.n_targets


def test_held_out_batches_score_each_token_once_in_order(blocks: BlocksOf) -> None:
    batches = list(held_out_batches(blocks(64), batch_size=4, max_tokens=63))
    assert [len(batch.tokens) for batch in batches] == [4, 4, 4, 1]
    assert real_targets(batches) == [*range(2, 64), 0]


@pytest.mark.parametrize(("max_tokens", "n_blocks"), [(1, 1), (5, 1), (9, 1), (10, 2), (62, 12)])
def test_a_capped_evaluation_takes_whole_blocks_from_everywhere(
    blocks: BlocksOf, max_tokens: int, n_blocks: int
) -> None:
    source = blocks(64)
    first = real_targets(list(held_out_batches(source, batch_size=4, max_tokens=max_tokens)))
    assert first == real_targets(list(held_out_batches(source, batch_size=3, max_tokens=max_tokens)))
    assert len(set(first)) == len(first)
    assert (n_blocks - 1) * SEQ_LEN < len(first) <= max(max_tokens, SEQ_LEN)
    if 1 < n_blocks < 12:
        assert first != list(range(2, 2 + len(first))), "not merely the beginning"


def test_no_blocks(blocks: BlocksOf) -> None:
    nothing = blocks(1)
    assert len(nothing) == 0
    assert list(held_out_batches(nothing, batch_size=2, max_tokens=9)) == []
    with pytest.raises(ValueError, match="no block"):
        single(nothing, 2, 0)


def test_an_order_is_one_permutation_after_another(blocks: BlocksOf) -> None:
    order = Order(blocks(66), 5, 8)
    expected: list[NDArray[np.int64]] = [permutation(13, 5, epoch, 8) for epoch in range(3)]
    assert [order.index(number) for number in range(39)] == np.concatenate(expected).tolist()
    assert order.index(3) == expected[0][3], "back again"
