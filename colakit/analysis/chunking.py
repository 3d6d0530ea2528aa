"""When the loss is computed in chunks of tokens: one rule for the loss itself and for what counts it beforehand."""

MAX_LOGITS = 2**26
"""Logits held at once, 256 MiB in float32."""


def tokens_per_chunk(vocab_size: int) -> int:
    """How many tokens' logits are held at once."""
    return max(1, MAX_LOGITS // vocab_size)
