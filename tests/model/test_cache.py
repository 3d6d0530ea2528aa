"""The cache of keys and values: what the places hold that nobody has written yet."""

import torch

from colakit.build import deterministic
from colakit.model.cache import KVCache
from colakit.model.lm import LM

from .tiny import tiny_config


def test_places_that_are_not_written_yet_never_reach_an_output() -> None:
    """A mask weighs them with 0, and 0 · NaN is NaN: where memory held one, every output was lost."""
    model = LM(tiny_config())
    model.init_weights(1)
    tokens = torch.randint(model.config.vocab_size, (2, 5))
    cache = KVCache(model.config.n_layers, max_len=9)
    with torch.no_grad(), deterministic(wanted=True):  # in which torch fills what is left empty with NaN
        model.extend(tokens[:, :4], cache)
        place = torch.tensor([4])
        visible = (torch.arange(9) <= 4)[None, None, None]
        whole = model.extend_at(tokens[:, 4:], cache.at(place), place, visible)
        assert torch.isnan(torch.empty(3)).all(), "nothing is filled: the test would pass without a mend"
    alone = model.hidden(tokens)[:, -1:]
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)
