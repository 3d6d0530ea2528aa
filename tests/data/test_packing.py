"""Packing: the blocks are the stream, cut so that each token is a target once."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colakit.data.packing import PAD, count_blocks, count_tokens, pack

EOT = 0
DOCUMENTS = st.lists(st.lists(st.integers(1, 50), max_size=30), max_size=12)


@given(DOCUMENTS, st.integers(1, 9))
def test_blocks_are_the_stream(documents: list[list[int]], seq_len: int) -> None:
    stream = [token for document in documents for token in [*document, EOT]]
    blocks = list(pack(documents, EOT, seq_len))
    assert len(blocks) == count_blocks(len(stream), seq_len)
    assert all(block.shape == (seq_len + 1,) and block.dtype == np.int32 for block in blocks)
    if len(stream) < 2:
        assert blocks == []
        return
    assert all(PAD not in block for block in blocks[:-1])
    targets = np.concatenate([block[1:] for block in blocks])
    assert [int(blocks[0][0]), *targets[targets != PAD]] == stream, "every token but the first is a target once"
    for left, right in pairwise(blocks):
        assert left[-1] == right[0], "the last target is the next block's first input"
    last = blocks[-1]
    real = np.flatnonzero(last != PAD)
    assert real.tolist() == list(range(len(real))), "padding is at the end"
    assert count_tokens(len(blocks), last) == len(stream)


def test_a_stream_that_fits_is_not_padded() -> None:
    blocks = list(pack([[1, 2, 3, 4], [5]], EOT, 3))  # 1 2 3 4 0 5 0
    assert [block.tolist() for block in blocks] == [[1, 2, 3, 4], [4, 0, 5, 0]]
    blocks = list(pack([[1, 2, 3, 4], [5, 6]], EOT, 3))
    assert [block.tolist() for block in blocks] == [[1, 2, 3, 4], [4, 0, 5, 6], [6, 0, PAD, PAD]]


@pytest.mark.parametrize("documents", [[], [[]]])
def test_no_target_no_block(documents: list[list[int]]) -> None:
    assert list(pack(documents, EOT, 4)) == []
