"""What a model is scored on: the held-out split of a run's data, or all of another text."""

from dataclasses import dataclass

import numpy as np

from colakit.config.schema import DataConfig
from colakit.data.packing import Joined, Packed, Padded, TextBlocks
from colakit.data.prepare import PreparedData, tokenise_whole
from colakit.data.split import Side
from colakit.data.tokenise import Watch, unwatched
from colakit.data.tokenizer import Tokenizer
from colakit.evaluate.windows import BlockWindows, SlidingWindows, TextSource, Windows


@dataclass(frozen=True)
class Text:
    """Tokenised documents, and how training would pack them."""

    sources: tuple[TextSource, ...]
    tokenizer: Tokenizer
    is_held_out: bool
    pads: bool
    """A document per block, as ``data.packing = pad`` has it."""
    isolate_eot: int | None
    """The end-of-text id where documents shall not see each other."""

    @property
    def label(self) -> str:
        """What is read, in the user's words."""
        return " + ".join(source.label for source in self.sources)

    def windows(self, seq_len: int, stride: int | None, max_tokens: int | None) -> Windows:
        """Packed into blocks of `seq_len`; with `stride`, each document by itself. At most `max_tokens` targets."""
        if stride is not None:
            eot = self.tokenizer.eot_id
            return SlidingWindows(self.sources, seq_len=seq_len, stride=stride, eot_id=eot, max_tokens=max_tokens)
        blocks: list[TextBlocks] = [
            Padded(source.store, source.chosen, seq_len, self.tokenizer.eot_id)
            if self.pads
            else Packed(source.store, source.chosen, seq_len)
            for source in self.sources
        ]
        return BlockWindows(blocks[0] if len(blocks) == 1 else Joined(blocks), max_tokens)


def held_out_text(data: PreparedData, config: DataConfig) -> Text:
    """The held-out documents of prepared data."""
    sources = tuple(TextSource(s.name, s.label, s.store, s.sides == Side.HELD_OUT) for s in data.sources)
    return Text(sources, data.tokenizer, True, config.packing == "pad", data.isolate_eot)


def whole_text(config: DataConfig, tokenizer: Tokenizer, watch: Watch = unwatched) -> Text:
    """Every document of `config`. Raises DataError for a fault in a source."""
    stores = tokenise_whole(config, tokenizer, watch)
    sources = tuple(TextSource(n, label, store, np.ones(len(store), bool)) for n, (label, store) in stores.items())
    eot = tokenizer.eot_id if config.isolates_documents else None
    return Text(sources, tokenizer, False, config.packing == "pad", eot)
