"""The held-out split: by group alone, whatever else the corpus holds, and without a text on both sides."""

import math
import random
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colakit.data.document import Document, hash64
from colakit.data.split import Side, split_sources, warn_of_shares
from colakit.data.store import Facts
from colakit.errors import DataError
from colakit.units import human_count

IDS = st.one_of(st.none(), st.sampled_from(["a", "b", "c#1", "c#2", "d#1", "d#2", "e#0"]))
DOCUMENTS = st.lists(st.builds(Document, st.sampled_from(["w", "x", "y", "z", "zz"]), IDS), min_size=1, max_size=12)
MANY = st.lists(st.builds(Document, st.integers(0, 60).map(str), IDS), min_size=1, max_size=30)


def documents(n: int) -> list[Document]:
    """`n` documents in groups of three; the hash of the second group, book39, is 0.003."""
    return [Document(f"text {i}", f"book{i // 3 + 38}#{i}") for i in range(n)]


def facts_of(docs: Sequence[Document]) -> Facts:
    hashes = np.array([document.hashes() for document in docs], dtype=np.uint64).reshape(-1, 2)
    return Facts(hashes[:, 0], hashes[:, 1], np.array([len(d.text.encode()) for d in docs], dtype=np.int64))


def split(docs: Sequence[Document], fraction: float, label: str = "a.txt") -> list[Side]:
    """The side of each document of a single source."""
    (sides,) = split_sources([facts_of(docs)], fraction, [label])
    return [Side(side) for side in sides]


def split_all(sources: Sequence[Sequence[Document]], fraction: float) -> list[list[Side]]:
    found = split_sources([facts_of(docs) for docs in sources], fraction, [f"{i}.txt" for i in range(len(sources))])
    return [[Side(side) for side in sides] for sides in found]


def held_out(docs: Sequence[Document], fraction: float) -> list[Document]:
    return [document for document, side in zip(docs, split(docs, fraction), strict=True) if side is Side.HELD_OUT]


def group_of(document: Document) -> int:
    return document.hashes()[0]


def text_of(document: Document) -> int:
    return document.hashes()[1]


@pytest.mark.parametrize(("name", "group"), [(None, "t"), ("a", "t"), ("a#1", "a"), ("a#1#2", "a"), ("#1", "")])
def test_the_group_is_the_part_of_the_id_before_a_hash_sign_else_the_text(name: str | None, group: str) -> None:
    assert Document("t", name).hashes() == (hash64(group.encode()), hash64(b"t"))


@given(st.lists(DOCUMENTS, min_size=1, max_size=3), st.floats(0.01, 0.6), st.randoms(use_true_random=False))
def test_properties(sources: list[list[Document]], fraction: float, rng: random.Random) -> None:
    try:
        sides = split_all(sources, fraction)
    except DataError:
        return
    held_texts, train_texts = set(), set()
    for docs, found in zip(sources, sides, strict=True):
        held = {group_of(d) for d, s in zip(docs, found, strict=True) if s is Side.HELD_OUT}
        rest = {group_of(d) for d, s in zip(docs, found, strict=True) if s is not Side.HELD_OUT}
        assert held, "there is something to evaluate on"
        assert Side.TRAIN in found
        assert held.isdisjoint(rest), "a group is on one side"
        held_texts |= {text_of(d) for d, s in zip(docs, found, strict=True) if s is Side.HELD_OUT}
        train_texts |= {text_of(d) for d, s in zip(docs, found, strict=True) if s is Side.TRAIN}
    assert held_texts.isdisjoint(train_texts), "no text is on both sides, not in another source either"
    pairs = [(d, s) for docs, found in zip(sources, sides, strict=True) for d, s in zip(docs, found, strict=True)]
    assert all(text_of(d) in held_texts for d, s in pairs if s is Side.DUPLICATE), "nothing else is dropped"
    shuffled = [rng.sample(range(len(docs)), len(docs)) for docs in sources]
    again = split_all([[docs[i] for i in order] for docs, order in zip(sources, shuffled, strict=True)], fraction)
    assert again == [[found[i] for i in order] for found, order in zip(sides, shuffled, strict=True)]


@given(st.lists(MANY, min_size=2, max_size=3), st.lists(MANY, min_size=3, max_size=3), st.floats(0.05, 0.6))
def test_a_corpus_that_grows_moves_no_document_from_held_out_to_training(
    sources: list[list[Document]], more: list[list[Document]], fraction: float
) -> None:
    """Nor back, but that a copy of what is now held out is dropped from training."""
    grown = [[*docs, *added] for docs, added in zip(sources, more, strict=False)]
    try:
        before, after = split_all(sources, fraction), split_all(grown, fraction)
    except DataError:
        return
    for one, two in zip(before, after, strict=True):
        moves = set(zip(one, two, strict=False))
        assert moves <= {*((side, side) for side in Side), (Side.TRAIN, Side.DUPLICATE)}


@given(MANY, MANY, MANY, st.floats(0.05, 0.6))
def test_what_a_source_holds_out_does_not_depend_on_others(
    docs: list[Document], other: list[Document], third: list[Document], fraction: float
) -> None:
    try:
        alone, among = split(docs, fraction), split_all([other, docs, third], fraction)[1]
    except DataError:
        return
    assert [side is Side.HELD_OUT for side in among] == [side is Side.HELD_OUT for side in alone]


def test_a_text_held_out_in_one_source_is_not_trained_on_in_another() -> None:
    docs = documents(30)
    held = held_out(docs, 0.1)
    # Under names that put the copies, by themselves, on the other side.
    copies = [
        next(c for i in range(1000) if group_of(c := Document(f" {d.text}\n", f"copy{i}#0")) > 2**63) for d in held
    ]
    others = [Document(f"other {i}", f"other{i}#0") for i in range(40)]
    first, second = split_all([docs, [*copies, *others]], 0.1)
    assert first == split(docs, 0.1)
    assert second[: len(copies)] == [Side.DUPLICATE] * len(copies)
    assert Side.DUPLICATE not in second[len(copies) :]
    assert split([*copies, *others], 0.1)[: len(copies)] == [Side.TRAIN] * len(copies)


def test_the_share_is_about_the_fraction() -> None:
    docs = [Document(f"text {i}") for i in range(5000)]
    held = held_out(docs, 0.1)
    assert 400 < len(held) < 600  # five standard deviations are 106
    assert {group_of(d) for d in held} == {h for h in map(group_of, docs) if h / 2**64 < 0.1}


def test_a_decision_does_not_depend_on_the_other_documents() -> None:
    few, many = documents(600), documents(3000)
    assert split(few, 0.05) == split(many, 0.05)[:600]


@given(st.lists(st.integers(1, 10_000), min_size=2, max_size=9), st.integers(0, 99))
def test_where_no_hash_is_small_enough_a_fraction_is_named_that_works(sizes: list[int], salt: int) -> None:
    docs = [Document(chr(97 + index) * size, f"{salt}-{index}#0") for index, size in enumerate(sizes)]
    with pytest.raises(DataError, match=f"^a.txt: none of its {len(sizes)} groups of documents has a hash below") as no:
        split(docs, 1e-9)
    named = re.search(r"Use --set data\.val_fraction=(\S+), which holds out (\S+)B of its (\S+)B, and", str(no.value))
    assert named is not None
    fraction = float(named[1])
    held = held_out(docs, fraction)
    assert (named[2], named[3]) == (human_count(size_of(held)), human_count(sum(sizes)))
    # The smallest one of two decimals, where they tell all groups apart and one will do, that is not far from its word.
    hashes = sorted(math.ceil(100 * group_of(d) / 2**64) for d in docs)
    if len(set(hashes)) == len(hashes):
        shares = [(n / 100, held_out(docs, n / 100)) for n in hashes[:-1]]
        enough = [f for f, found in shares if 5 * size_of(found) >= f * sum(sizes)]
        assert not enough or fraction == enough[0]


def size_of(docs: Sequence[Document]) -> int:
    return sum(len(d.text) for d in docs)


def test_a_lopsided_split_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def told(docs: Sequence[Document], fraction: float) -> str:
        caplog.clear()
        facts = facts_of(docs)
        (sides,) = split_sources([facts], fraction, ["a.txt"])
        assert not caplog.records, "splitting says nothing: it is done twice where a tokenizer is trained"
        warn_of_shares(facts, sides, fraction, "a.txt")
        return caplog.text

    books = [Document(f"{i:04}" * 250, f"book{i}#0") for i in range(36, 45) if i != 42]
    assert re.search(r"a\.txt: 1kB of 4kB of .*_fraction is 0\.01: its 4 groups .*or a lower", told(books[:4], 0.01))
    assert not told(books[:6], 0.01), "a sixth is not a fifth"
    assert not told(books[:4], 0.1)
    names = [f"book{i}" for i in range(1000)]
    small = next(name for name in names if group_of(Document("", f"{name}#0")) < 0.02 * 2**64)
    large = [name for name in names if group_of(Document("", f"{name}#0")) > 0.02 * 2**64][:40]
    few = [Document("a" * 20, f"{small}#0"), *(Document(f"{name:>4}" * 250, f"{name}#0") for name in large)]
    assert re.search(r"a\.txt: 20B of .* A higher data\.val_fraction", told(few, 0.02))
    copies = [Document("a" * 20, f"{name}#0") for name in large[:12]]
    assert "a.txt: 12 of 53 documents are dropped: their text is among what is held out." in told([*few, *copies], 0.02)
    assert "dropped" not in told([*few, *copies[:8]], 0.02), "a sixth is not a fifth"


@pytest.mark.parametrize("other", ["a b\nc\n", "a b\r\nc", "  a\tb c", "a\u00a0b\n\n\nc"])
def test_copies_that_differ_in_white_space_are_one_group_and_never_on_both_sides(other: str) -> None:
    text, others = "a b\nc", documents(30)
    assert group_of(Document(text)) == group_of(Document(other)) != group_of(Document("a b\nd"))
    copies = [Document(text, "first#0"), Document(other, "second#0")]
    for fraction in (0.01, 0.1, 0.3, 0.5, 0.7):
        assert Counter(split([*copies, *others], fraction)[:2]) in (
            {Side.TRAIN: 2},
            {Side.HELD_OUT: 2},
            {Side.HELD_OUT: 1, Side.DUPLICATE: 1},
        )


def test_a_copy_of_held_out_text_is_dropped_from_training() -> None:
    docs = documents(30)
    held = held_out(docs, 0.05)[0]
    copy = next(Document(held.text, f"copy{i}#0") for i in range(100) if group_of(Document("", f"copy{i}#0")) > 2**63)
    sides = split([*docs, copy], 0.05)
    assert sides.index(Side.DUPLICATE) == len(docs)
    assert sides.count(Side.DUPLICATE) == 1


@pytest.mark.parametrize("docs", [[Document("a")], [Document("a"), Document("a")], documents(3)])
def test_one_group_is_refused(docs: list[Document]) -> None:
    with pytest.raises(
        DataError, match=r"^a\.txt is one group of documents, .* groups, give more documents, or a single \.txt"
    ):
        split(docs, 0.1, "a.txt")


def test_the_source_that_is_too_small_is_named() -> None:
    with pytest.raises(DataError, match=r"^1\.txt is one group"):
        split_all([documents(30), documents(3)], 0.1)


def test_a_training_split_without_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"nothing to train on\. Lower data\.val_fraction, which at 1 holds out 2 doc"):
        split([Document("a"), Document("b")], 1 - 1e-9)
    with pytest.raises(DataError, match="1 more repeat their text"):
        split([Document("a", "book39#1"), Document("a", "book40#1")], 0.01)
