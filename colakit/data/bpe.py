"""Training a byte-level BPE: GPT-2's pre-tokenisation behind a split of digits, as SmolLM2's tokenizer has it."""

from collections.abc import Iterable

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from colakit.data.tokenizer import Tokenizer

TRAINER_VERSION = 1
"""Part of the cache key: raise it when the same texts would give another tokenizer."""

EOT = "<|endoftext|>"
_MIN_FREQUENCY = 2


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A BPE of at most `vocab_size` tokens trained on `texts`.

    Id 0 is ``<|endoftext|>``; then come all 256 bytes, then merges. The same texts give the same tokenizer. Few texts
    give fewer tokens; the first 257 are always there, whatever `vocab_size`.
    """
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=[EOT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    return Tokenizer(backend, source="bpe")
