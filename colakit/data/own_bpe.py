"""The tokenizer of ``data.tokenizer = "bpe"``: trained once on what a run trains on, and kept in the cache."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from colakit.config.schema import DataConfig
from colakit.data.bpe import TRAINER_VERSION, train_bpe
from colakit.data.cache import cache_root, cached_folder, key_of
from colakit.data.sources import Source, Tally, no_text
from colakit.data.split import Side, Sides, split_sources
from colakit.data.store import Facts
from colakit.data.tokenise import Watch, read_facts
from colakit.data.tokenizer import Tokenizer, read_tokenizer
from colakit.errors import DataError
from colakit.units import human_count

log = logging.getLogger(__name__)

_MOST_TRAINER_BYTES = 2**28
"""Of text that a tokenizer is trained on: more changes its words little, and costs memory."""


def own_bpe(
    config: DataConfig, sources: Sequence[Source], identities: Sequence[str], vocab_size: int, watch: Watch
) -> Tokenizer:
    """A BPE of the training documents alone, from the cache where it is there: what is held out must not shape it."""

    def write(folder: Path) -> None:
        facts = [_facts(source, config, watch) for source in sources]
        sides = split_sources(facts, config.val_fraction, [source.label for source in sources])
        trained_on = [f.n_bytes[side == Side.TRAIN] for f, side in zip(facts, sides, strict=True)]
        n_bytes = sum(int(each.sum()) for each in trained_on)
        log.info(
            "Preparing data: training a tokenizer of %d tokens on the %d training documents, %sB of text%s …",
            vocab_size,
            sum(len(each) for each in trained_on),
            human_count(n_bytes),
            f", of which {human_count(_MOST_TRAINER_BYTES)}B are enough" if n_bytes > _MOST_TRAINER_BYTES else "",
        )
        tokenizer = train_bpe(_trainer_texts(sources, facts, sides, n_bytes), vocab_size)
        if tokenizer.n_tokens < vocab_size:
            log.warning(
                "The text has only %d tokens to learn, and the model %d rows for them. To leave none over: --set "
                "model.vocab_size=%d.",
                tokenizer.n_tokens,
                vocab_size,
                tokenizer.n_tokens,
            )
        tokenizer.save(folder)

    key = key_of(*identities, config.val_fraction, vocab_size, TRAINER_VERSION)
    folder = cached_folder(cache_root(config) / "tokenizers" / key, write)
    try:
        return read_tokenizer(folder, source="bpe")
    except DataError as error:
        raise DataError(f"{error} Remove {folder}; it will be made anew.") from error


def _facts(source: Source, config: DataConfig, watch: Watch) -> Facts:
    tally = Tally()
    facts = read_facts(source, tally, watch)
    if len(facts.n_bytes) == 0:
        raise no_text(source, tally, config)
    return facts


def _trainer_texts(
    sources: Sequence[Source], facts: Sequence[Facts], sides: Sequence[Sides], n_bytes: int
) -> Iterator[str]:
    """The training texts of all sources; of a large corpus a part, chosen by hash."""
    limit = min(1.0, _MOST_TRAINER_BYTES / max(1, n_bytes)) * 2**32
    for source, known, side in zip(sources, facts, sides, strict=True):
        wanted = (side == Side.TRAIN) & (known.texts % 2**32 < limit)
        for i, (_, document) in enumerate(source.documents(Tally())):
            if i >= len(wanted) or document.hashes()[1] != known.texts[i]:
                raise _changed(source)
            if wanted[i]:
                yield document.text
        source.check_unchanged()


def _changed(source: Source) -> DataError:
    return DataError(
        f"{source.label}: the data changed while it was being read. Wait until it is complete, then start again."
    )
