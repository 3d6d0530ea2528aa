"""When the loss is computed in chunks of tokens: one rule for the loss itself and for what counts it beforehand."""

MAX_LOGITS = 2**26
"""Logits held at once, 256 MiB in float32. One chunk is computed once; several are recomputed in the backward pass."""


def tokens_per_chunk(vocab_size: int) -> int:
    """How many tokens' logits are held at once."""
    return max(1, MAX_LOGITS // vocab_size)


def is_chunked(tokens: int, vocab_size: int) -> bool:
    """Whether the loss of one micro-batch of `tokens` takes more than one chunk."""
    return tokens > tokens_per_chunk(vocab_size)
