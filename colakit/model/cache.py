"""Keys and values that are kept while a text grows, so that what was read before is not computed again.

Any object with `update` and `get_seq_length` serves, `transformers`' caches among them: it keeps what each block's
attention has computed and gives back all of it.

Shapes: B batch, K kv heads, T new tokens, S tokens up to the last new one, E head_dim.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from colakit.model.rope import Angles


class Keeps(Protocol):
    """What attention asks of a cache; the names are those of `transformers`."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, /) -> tuple[Tensor, Tensor]:
        """Keep the [B, K, T, E] of a block's new tokens; → keys and values of all its tokens, [B, K, S, E] each."""


class KeyValues(Keeps, Protocol):
    """What the model asks of a cache that tells where it is."""

    def get_seq_length(self) -> int:
        """Tokens that every block has read."""


class KVCache:
    """Room for `max_len` tokens, taken when a block first needs it: a new token is written behind the others."""

    def __init__(self, n_layers: int, max_len: int) -> None:
        self.max_len = max_len
        self._stored: list[tuple[Tensor, Tensor] | None] = [None] * n_layers
        self._lengths = [0] * n_layers

    def update(self, keys: Tensor, values: Tensor, layer: int, /) -> tuple[Tensor, Tensor]:
        """As `Keeps.update`. Raises ValueError where there is no room left."""
        start, stop = self._lengths[layer], self._lengths[layer] + keys.shape[2]
        if stop > self.max_len:
            raise ValueError(f"the cache has room for {self.max_len} tokens, not for {stop}")
        stored = self._stored[layer]
        if stored is None:
            batch, heads, _, width = keys.shape
            # Zeros, not what memory held: `at` gives places that are not written yet, which a mask weighs with 0, and
            # 0 · NaN is NaN.
            stored = (
                keys.new_zeros(batch, heads, self.max_len, width),
                values.new_zeros(batch, heads, self.max_len, width),
            )
            self._stored[layer] = stored
        if keys.shape[0] != stored[0].shape[0]:
            raise ValueError(f"the cache holds {stored[0].shape[0]} rows, not {keys.shape[0]}")
        for kept, new in zip(stored, (keys, values), strict=True):
            kept[:, :, start:stop] = new
        self._lengths[layer] = stop
        return stored[0][:, :, :stop], stored[1][:, :, :stop]

    def get_seq_length(self) -> int:
        """Tokens that every block has read."""
        return min(self._lengths)

    def advance(self) -> int:
        """Count a token that `at` writes; → its place. Raises ValueError where there is no room left."""
        place = self.get_seq_length()
        if place == self.max_len:
            raise ValueError(f"the cache has room for {self.max_len} tokens")
        self._lengths = [place + 1] * len(self._lengths)
        return place

    def at(self, place: Tensor) -> "Keeps":
        """The same buffers, once every block has them, written at `place` [1] int64 on the device, and given whole."""
        return _InPlace([stored for stored in self._stored if stored is not None], place)


class _InPlace:
    """A cache whose shapes stay the same from token to token, as a CUDA graph needs them."""

    def __init__(self, stored: list[tuple[Tensor, Tensor]], place: Tensor) -> None:
        self._stored = stored
        self._place = place

    def update(self, keys: Tensor, values: Tensor, layer: int, /) -> tuple[Tensor, Tensor]:
        for kept, new in zip(self._stored[layer], (keys, values), strict=True):
            kept.index_copy_(2, self._place, new)
        return self._stored[layer]


class NoCache:
    """Keeps nothing: for tokens that are read with padding, or from positions of their own, and not gone on from."""

    def update(self, keys: Tensor, values: Tensor, _layer: int, /) -> tuple[Tensor, Tensor]:
        """What it was given."""
        return keys, values

    def get_seq_length(self) -> int:
        """None."""
        return 0


@dataclass(frozen=True)
class Cached:
    """What every block of one forward pass reads that goes on behind what a cache holds."""

    cache: Keeps
    angles: Angles
    """Of the new tokens' positions: cosines and sines [T, E/2], or [B, 1, T, E/2] where rows differ."""
    visible: Tensor | None
    """Which tokens each new one sees, [B, 1, T, S] bool; None: all before it, and itself."""


def visible_tokens(n_new: int, real: Tensor) -> Tensor:
    """For rows that hold padding: which tokens each of the last `n_new` sees, [B, 1, T, S] bool.

    `real` [B, S] bool is False where a row is padded. Padding sees itself alone: a row of attention weights that sees
    nothing is no number, and would spread.
    """
    s = real.shape[1]
    place = torch.arange(s, device=real.device)
    own = place[s - n_new :, None]  # [T, 1]
    return ((real[:, None, :] & (place <= own)) | (place == own))[:, None]
