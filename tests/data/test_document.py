"""Documents: what tells them apart, and cuts through long ones that no tokenizer notices."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Encoding, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from colakit.data import document as document_module
from colakit.data.bpe import train_bpe
from colakit.data.document import Document, cut_between_words, hash64, id_of
from colakit.data.pretrained import load_tokenizer
from colakit.data.tokenizer import Tokenizer
from tests.data.stores import encode_documents

SMOLLM2 = Path(__file__).parents[3] / "shared" / "data" / "tokenizer_smollm2"

PARTS = [
    *(" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u2028"),
    *(
        "\u2003",
        "\u3000",
        "word",
        "don't",
        "'s",
        "1",
        "234",
        "!",
        "?!",
        "...",
        "“",
        "，",
        "。",
        "漢",
        "字語",
        "é",
        "e\u0301",
        "😀",
    ),
    *("\u200b", "\u200d", "-", "==", "naïve", "Σ", "क्षि"),
]
TEXT = st.lists(st.sampled_from(PARTS), max_size=40).map("".join)
BPE = train_bpe(["".join(PARTS[(i * j * j) % len(PARTS)] for j in range(400)) for i in range(1, 60)], 2000)
"""Trained on the oddest text there is, so that it has tokens of white space, punctuation and both."""

# Llama 3's, which joins line ends to the punctuation before them.
_LLAMA_3 = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def _llama_3_like() -> Tokenizer:
    made = Backend(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["end.\n\nNew line!\n word,\n" * 50], trainer=trainer)
    return Tokenizer(made, source="llama 3")


LLAMA_3 = _llama_3_like()
TOKENIZERS = [BPE, *([load_tokenizer(str(SMOLLM2))] if SMOLLM2.is_dir() else [])]


def ids_of(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    return [i for ids in tokenizer.encode_batch(texts) for i in ids]


@given(TEXT, st.integers(1, 40))
def test_pieces_join_to_the_text_and_are_no_longer_than_asked(text: str, size: int) -> None:
    cut = list(cut_between_words(text, size))
    assert "".join(cut) == text
    assert all(0 < len(piece) <= size for piece in cut) or text == ""


# Whatever stands together by chance, and then a letter and what is none, so that 40 characters hold the end of a word.
UNIT = st.tuples(
    st.lists(st.sampled_from(PARTS), max_size=3).map("".join),
    st.sampled_from("aé漢"),
    st.sampled_from(" \n,。1'\u3000"),
)
WORDS = st.lists(UNIT.map("".join), min_size=4, max_size=40).map("".join)


@settings(max_examples=150, deadline=None)
@given(WORDS, st.integers(40, 80))
def test_pieces_have_the_ids_of_the_whole(text: str, size: int) -> None:
    cut = list(cut_between_words(text, size))
    for tokenizer in TOKENIZERS:
        assert ids_of(tokenizer, cut) == ids_of(tokenizer, [text]), tokenizer.source


@pytest.mark.parametrize("separator", [" ", "\n", "\u3000", "\t ", "\r\n", "，", "。\n", ", ", " \x1c", "1"])
def test_a_long_document_has_its_ids_whatever_parts_its_words(separator: str) -> None:
    """CJK text has no white space for pages: its pieces were cut inside words."""
    text = separator.join(["漢字漢字", "don't", "naïve", "the", "end"] * 1000)
    for tokenizer in TOKENIZERS:
        (ids,) = encode_documents(tokenizer, [text], 0.001)
        assert ids.tolist() == [*ids_of(tokenizer, [text]), tokenizer.eot_id], tokenizer.source


@pytest.mark.parametrize("size", range(30, 50))
def test_line_ends_stay_with_the_punctuation_before_them(size: int) -> None:
    text = "A word end.\n\nNew line!\n word,\n\n" * 40
    assert ids_of(LLAMA_3, list(cut_between_words(text, size))) == ids_of(LLAMA_3, [text])


def test_a_text_without_any_end_of_words_is_cut_at_the_size() -> None:
    assert list(cut_between_words("漢" * 10, 4)) == ["漢" * 4, "漢" * 4, "漢" * 2]
    assert list(cut_between_words("", 4)) == [""]
    assert list(cut_between_words("ab!\x1c!", 4)) == ["ab", "!\x1c!"], "no white space to a tokenizer"
    assert list(cut_between_words("ab!\t!", 4)) == ["ab!", "\t!"]
    far = " " + "x" * 200_000
    assert [len(piece) for piece in cut_between_words(far, 100_000)] == [100_000, 100_000, 1], (
        "64 Ki characters are looked at"
    )


@pytest.mark.parametrize("fraction", [0.01, 0.04, 0.3])
def test_pieces_are_held_out_evenly_and_by_number(fraction: float) -> None:
    groups = [Document(f"text {i}", piece=i).hashes()[0] for i in range(5000)]
    assert len(set(groups)) == 5000
    assert groups[1] == 0, "the second is held out, at whatever fraction"
    below = np.array(groups) < np.uint64(fraction * 2**64)
    for n in (10, 100, 1000):
        counts = np.convolve(below, np.ones(n), mode="valid")
        assert np.abs(counts - fraction * n).max() < 2.5
    assert Document("a b", piece=7).hashes() == (groups[7], hash64(b"ab"))


@pytest.mark.parametrize(
    ("value", "name"), [("a#1", "a#1"), (7, "7"), (True, None), (1.5, None), (None, None), ({"a": 1}, None)]
)
def test_an_id_is_a_string_or_a_whole_number(value: object, name: str | None) -> None:
    assert id_of(value) == name


def test_hashes_are_of_group_and_text_but_for_its_layout() -> None:
    assert Document("a  b\n", "book#3").hashes() == (hash64(b"book"), hash64(b"ab"))
    assert Document("a b", "book").hashes() == Document("\ta\r\n\xa0b\v\f").hashes() == (hash64(b"ab"),) * 2
    assert Document("a b", "book#1#2").hashes()[0] == hash64(b"book")
    assert Document("ac").hashes() != Document("a b").hashes()


@settings(max_examples=50, deadline=None)
@given(WORDS)
def test_the_hash_of_a_long_text_is_that_of_a_short_one(text: str) -> None:
    whole = Document(text).hashes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document_module, "_HASHED_CHARS", 16)
        assert Document(text).hashes() == whole == (hash64("".join(re.split("[ \t\n\r\v\f\xa0]+", text)).encode()),) * 2


def test_a_long_document_is_told_by_its_bytes() -> None:
    seen: list[list[str]] = []

    class Watched(Tokenizer):
        def encodings(self, texts: Sequence[str]) -> list[Encoding]:
            seen.append(list(texts))
            return super().encodings(texts)

    tokenizer = Watched(train_bpe(["a text"], 260)._backend, source="watched")
    encode_documents(tokenizer, ["x" * 1000, "漢" * 333], 0.001)
    assert seen == [["x" * 1000, "漢" * 333]]
    seen.clear()
    encode_documents(tokenizer, ["x" * 1001, "漢" * 500], 0.001)
    assert ["".join(seen[0][:2]), "".join(seen[0][2:])] == ["x" * 1001, "漢" * 500]
    assert max(len(piece.encode()) for piece in seen[0]) <= 1000
