"""Which bytes each token of a byte-level tokenizer stands for, read from the JSON of its tokenizer.json.

Bits per byte need the exact bytes behind the predicted ids. They exist only where encoding loses and changes nothing;
everywhere else the answer is None rather than an estimate.
"""

from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]  # Any: the file's format is that of `tokenizers`

_LOSSLESS = frozenset({"ByteLevel", "Digits", "Split"})


def exact_bytes(tokenizer: Json, n_tokens: int) -> tuple[bytes, ...] | None:
    """The bytes of each of `n_tokens` ids, b"" for special tokens and unused ids.

    None for a tokenizer that is not byte-level BPE, that may change text, or that has a token we cannot read. Where a
    vocabulary lacks a byte (SmolLM2's lacks U+0004 and the lead bytes F1 and F2), encoding drops it from the text; what
    the ids stand for is exact all the same.
    """
    if not _is_lossless(tokenizer):
        return None
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    added = {token["id"]: token for token in tokenizer["added_tokens"]}
    table = [b""] * n_tokens
    for text, index in vocab.items():
        if index not in added:
            if not set(text) <= set(_BYTE_OF_CHAR):
                return None
            table[index] = bytes(_BYTE_OF_CHAR[char] for char in text)
    for index, token in added.items():
        table[index] = b"" if token["special"] else token["content"].encode()
    return tuple(table)


def _is_lossless(tokenizer: Json) -> bool:
    model = tokenizer["model"]
    steps = _steps(tokenizer["pre_tokenizer"], "pretokenizers")
    marked = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    return (
        model["type"] == "BPE"
        and not marked
        and not _steps(tokenizer["normalizer"], "normalizers")
        and "ByteLevel" in {step["type"] for step in steps}
        and "ByteLevel" in {step["type"] for step in _steps(tokenizer["decoder"], "decoders")}
        and all(step["type"] in _LOSSLESS for step in steps)
        and not any(step.get("add_prefix_space") or step.get("behavior") == "Removed" for step in steps)
        # A literal token that swallows the space beside it stands for now one and now another text.
        and not any(t["lstrip"] or t["rstrip"] for t in tokenizer["added_tokens"] if not t["special"])
    )


def _steps(stage: Json | None, key: str) -> list[Json]:
    """The parts of a pipeline stage: absent, a single part, or a Sequence of parts."""
    if stage is None:
        return []
    if stage["type"] != "Sequence":
        return [stage]
    return [step for part in stage[key] for step in _steps(part, key)]


def _byte_of_char() -> dict[str, int]:
    """GPT-2's bijection between bytes and printable characters: printable Latin-1 is itself, the rest follow U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    chars = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    return dict(zip(chars, [*printable, *others], strict=True))


_BYTE_OF_CHAR = _byte_of_char()
