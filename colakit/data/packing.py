"""Documents as one stream of tokens, cut into blocks of fixed length. Pure functions over arrays.

T is the sequence length. Block i holds tokens i·T … i·T + T of the stream, T + 1 of them: its first T are a model's
input and its last T the targets. Neighbours share one token, so each token but the stream's first is a target once.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

PAD = -1
"""Fills the last block behind the stream's end; no token has this id."""


def pack(token_lists: Iterable[Sequence[int]], eot_id: int, seq_len: int) -> Iterator[NDArray[np.int32]]:
    """The blocks [T + 1] of the stream in which each document is followed by `eot_id`; the last one may hold PAD.

    A stream of fewer than two tokens has no target, and so no block.
    """
    held = np.empty(0, dtype=np.int32)
    for tokens in token_lists:
        held = np.concatenate([held, np.asarray([*tokens, eot_id], dtype=np.int32)])
        n_whole = max(0, (len(held) - 1) // seq_len)
        for index in range(n_whole):
            yield held[index * seq_len : (index + 1) * seq_len + 1]
        held = held[n_whole * seq_len :]
    if len(held) > 1:
        yield np.pad(held, (0, seq_len + 1 - len(held)), constant_values=PAD)


def count_blocks(n_tokens: int, seq_len: int) -> int:
    """How many blocks `pack` makes of a stream of `n_tokens`."""
    return max(0, -(-(n_tokens - 1) // seq_len))


def count_tokens(n_blocks: int, last_block: NDArray[np.int32]) -> int:
    """Tokens of the stream whose `n_blocks` blocks end with `last_block`: the inverse of `count_blocks`."""
    seq_len = len(last_block) - 1
    return (n_blocks - 1) * seq_len + int(np.count_nonzero(last_block != PAD))
