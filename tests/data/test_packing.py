"""Packing: the blocks are the stream, cut so that each token is a target once; or a document each."""

from collections.abc import Callable
from itertools import count, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from colakit.data.packing import PAD, Blocks, Joined, Packed, Padded, padding_frac
from colakit.data.store import DocumentStore
from tests.data.stores import EOT, make_store

DOCUMENT = st.lists(st.integers(1, 50), max_size=30)
"""An empty one is a text of which the tokenizer made nothing."""
PARTS = st.lists(st.lists(st.tuples(DOCUMENT, st.booleans()), max_size=7), max_size=4)
"""Of a store; each document with whether it is chosen."""
Make = Callable[..., DocumentStore]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder, numbers = tmp_path_factory.mktemp("stores"), count()
    return lambda *parts, **others: make_store(folder / str(next(numbers)), parts, **others)


def build(make: Make, parts: list[list[tuple[list[int], bool]]]) -> tuple[DocumentStore, NDArray[np.bool_]]:
    store = make(*[[document for document, _ in part] for part in parts])
    return store, np.array([chosen for part in parts for _, chosen in part], dtype=bool)


def chosen_of(parts: list[list[tuple[list[int], bool]]]) -> list[list[int]]:
    """The documents that are there, end-of-text token included."""
    return [[*document, EOT] for part in parts for document, is_chosen in part if is_chosen and document]


def real_targets(blocks: Blocks) -> list[int]:
    return [int(token) for i in range(len(blocks)) for token in blocks[i][1:] if token != PAD]


def every(blocks: Blocks) -> list[list[int]]:
    return [blocks[index].tolist() for index in range(len(blocks))]


def check_shape(blocks: Blocks, seq_len: int) -> None:
    """What the loader counts on."""
    found = [blocks[index] for index in range(len(blocks))]
    assert all(block.shape == (seq_len + 1,) and block.dtype == np.int32 for block in found)
    for block in found:
        real = np.flatnonzero(block != PAD)
        assert real.tolist() == list(range(len(real))), "padding is at the end"
        assert len(real) >= 2, "a block without a target"
    assert blocks.n_targets == len(real_targets(blocks))
    assert all(np.array_equal(blocks[i], found[i]) for i in reversed(range(len(found)))), "in any order"
    for index in (-1, len(blocks), len(blocks) + 5):
        with pytest.raises(IndexError):
            blocks[index]
    if found:
        share = np.mean([np.mean(block[1:] == PAD) for block in found])
        assert padding_frac(blocks, seq_len) == pytest.approx(share)
    else:
        assert padding_frac(blocks, seq_len) == 0.0


@settings(deadline=None)
@given(parts=PARTS, seq_len=st.integers(1, 9))
def test_blocks_are_the_stream(make: Make, parts: list[list[tuple[list[int], bool]]], seq_len: int) -> None:
    stream = [token for document in chosen_of(parts) for token in document]
    packed = Packed(*build(make, parts), seq_len)
    check_shape(packed, seq_len)
    assert packed.n_tokens == len(stream)
    assert packed.n_targets == max(0, len(stream) - 1)
    blocks = [packed[index] for index in range(len(packed))]
    if len(stream) < 2:
        assert blocks == []
        return
    assert [int(blocks[0][0]), *real_targets(packed)] == stream, "every token but the first is a target once"
    assert all(PAD not in block for block in blocks[:-1])
    for left, right in pairwise(blocks):
        assert left[-1] == right[0], "the last target is the next block's first input"


def test_a_stream_that_fits_is_not_padded(make: Make) -> None:
    packed = Packed(make([[1, 2, 3, 4], [5]]), np.array([True, True]), 3)  # 1 2 3 4 0 5 0
    assert every(packed) == [[1, 2, 3, 4], [4, 0, 5, 0]]
    packed = Packed(make([[1, 2, 3, 4], [5, 6]]), np.array([True, True]), 3)
    assert every(packed) == [[1, 2, 3, 4], [4, 0, 5, 6], [6, 0, PAD, PAD]]


def test_what_is_not_chosen_leaves_no_trace(make: Make) -> None:
    store = make([[1, 2], [3, 4]], [[5], [], [6, 7]])
    chosen = np.array([True, False, True, True, False])
    assert every(Packed(store, chosen, 4)) == [[1, 2, EOT, 5, EOT]]
    assert every(Packed(store, ~chosen, 5)) == [[3, 4, EOT, 6, 7, EOT]]


@pytest.mark.parametrize("parts", [[], [[]], [[[]]], [[], [[], []]]])
def test_no_target_no_block(make: Make, parts: list[list[list[int]]]) -> None:
    store = make(*parts)
    for chosen in (np.ones(len(store), dtype=bool), np.zeros(len(store), dtype=bool)):
        packed, padded = Packed(store, chosen, 4), Padded(store, chosen, 4, EOT)
        assert len(packed) == packed.n_targets == packed.n_tokens == len(padded) == padded.n_targets == 0


@pytest.mark.parametrize(("n_ids", "largest"), [(2**16, 2**16 - 1), (2**16 + 1, 2**16)])
def test_the_largest_id_is_stored(make: Make, n_ids: int, largest: int) -> None:
    store = make([[largest, 1]], n_ids=n_ids)
    assert Packed(store, np.array([True]), 2)[0].tolist() == [largest, 1, EOT]


@settings(deadline=None)
@given(parts=PARTS, seq_len=st.integers(1, 40), eot_id=st.integers(51, 60))
def test_a_document_per_block(make: Make, parts: list[list[tuple[list[int], bool]]], seq_len: int, eot_id: int) -> None:
    """Behind an end-of-text token, as on packed text; `eot_id` tells it here from the one behind the document."""
    documents = chosen_of(parts)
    padded = Padded(*build(make, parts), seq_len, eot_id)
    check_shape(padded, seq_len)
    assert len(padded) == len(documents)
    for index, document in enumerate(documents):
        kept = document[:seq_len]
        assert padded[index].tolist() == [eot_id, *kept, *[PAD] * (seq_len - len(kept))]
    assert padded.n_targets == sum(min(len(document), seq_len) for document in documents)


@settings(deadline=None, max_examples=50)
@given(sources=st.lists(PARTS, min_size=1, max_size=4), seq_len=st.integers(1, 9), pads=st.lists(st.booleans()))
def test_joined_is_one_behind_the_other(
    make: Make, sources: list[list[list[tuple[list[int], bool]]]], seq_len: int, pads: list[bool]
) -> None:
    built = [build(make, parts) for parts in sources]
    kinds = [*pads, *[False] * len(built)]
    parts: list[Blocks] = [
        Padded(store, chosen, seq_len, EOT) if kind else Packed(store, chosen, seq_len)
        for (store, chosen), kind in zip(built, kinds, strict=False)
    ]
    joined = Joined(parts)
    check_shape(joined, seq_len)
    assert every(joined) == [block for part in parts for block in every(part)]
    assert joined.n_targets == sum(part.n_targets for part in parts)
