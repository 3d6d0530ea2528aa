"""The held-out split: by group, whatever the order, and without a text on both sides."""

import logging
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colakit.data.document import Document, hash64
from colakit.data.split import Side, split_sources
from colakit.data.store import Facts
from colakit.errors import DataError

IDS = st.one_of(st.none(), st.sampled_from(["a", "b", "c#1", "c#2", "d#1", "d#2", "e#0"]))
DOCUMENTS = st.lists(st.builds(Document, st.sampled_from(["w", "x", "y", "z", "zz"]), IDS), min_size=1, max_size=12)
MANY = st.lists(st.builds(Document, st.integers(0, 60).map(str), IDS), min_size=1, max_size=30)


def documents(n: int) -> list[Document]:
    return [Document(f"text {i}", f"book{i // 3}#{i}") for i in range(n)]


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
    held_groups = {group_of(d) for d, s in pairs if s is Side.HELD_OUT}
    assert held_groups.isdisjoint(group_of(d) for d, s in pairs if s is Side.TRAIN), "nor a group"
    dropped = [d for d, s in pairs if s is Side.DUPLICATE]
    assert all(text_of(d) in held_texts or group_of(d) in held_groups for d in dropped), "nothing else is dropped"
    shuffled = [rng.sample(range(len(docs)), len(docs)) for docs in sources]
    again = split_all([[docs[i] for i in order] for docs, order in zip(sources, shuffled, strict=True)], fraction)
    assert again == [[found[i] for i in order] for found, order in zip(sides, shuffled, strict=True)]


@given(MANY, MANY, st.floats(0.05, 0.6))
def test_a_corpus_that_grows_moves_a_group_in_the_two_told_cases_alone(
    docs: list[Document], more: list[Document], fraction: float
) -> None:
    """A group of more than half of the text, before or after; and one held out for want of a smaller hash."""
    try:
        before, after = split(docs, fraction), split([*docs, *more], fraction)
    except DataError:
        return
    sizes, grown = sizes_of(docs), sizes_of([*docs, *more])
    for document, one, two in zip(docs, before, after, strict=False):
        group = group_of(document)
        is_told = group >= fraction * 2**64 or 2 * sizes[group] > sizes.total() or 2 * grown[group] > grown.total()
        assert is_told or (one is Side.HELD_OUT) == (two is Side.HELD_OUT)


def sizes_of(docs: Sequence[Document]) -> Counter[int]:
    """UTF-8 bytes by group."""
    sizes: Counter[int] = Counter()
    for document in docs:
        sizes[group_of(document)] += len(document.text.encode())
    return sizes


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


def test_a_small_corpus_holds_out_the_smallest_hash() -> None:
    docs = [Document("one"), Document("two"), Document("six")]
    assert held_out(docs, 1e-9) == [min(docs, key=group_of)]


SIZES = st.lists(st.integers(1, 10_000), min_size=2, max_size=9)


@given(SIZES, st.integers(0, 99))
def test_the_smallest_hash_of_n_groups_holds_out_at_most_an_nth(sizes: list[int], salt: int) -> None:
    docs = [Document(chr(97 + index) * size, f"{salt}-{index}#0") for index, size in enumerate(sizes)]
    held = held_out(docs, 1e-9)
    assert len(held) == 1
    assert len(held[0].text) * len(docs) <= sum(sizes)
    smaller = [d for d in docs if group_of(d) < group_of(held[0])]
    assert all(len(d.text) * len(docs) > sum(sizes) for d in smaller), "the smallest hash of those"


@given(SIZES, st.integers(0, 99), st.floats(0.01, 0.6))
def test_more_than_half_of_the_text_is_never_one_held_out_group(sizes: list[int], salt: int, fraction: float) -> None:
    docs = [
        Document(chr(97 + index) * size, f"{salt}-{index}#0") for index, size in enumerate([*sizes, sum(sizes) + 1])
    ]
    assert docs[-1] not in held_out(docs, fraction)


def test_half_of_the_text_may_be() -> None:
    """So the rule takes no group out that is the smaller of two by nothing."""
    docs = [Document("ab", "x#0"), Document("cd", "y#0")]
    fraction = 1.5 * min(map(group_of, docs)) / 2**64
    assert held_out(docs, fraction) == [min(docs, key=group_of)]


def test_a_lopsided_split_is_told(caplog: pytest.LogCaptureFixture) -> None:
    split([Document(f"{i:04}" * 250, f"book{i}#0") for i in range(4)], 0.01)
    assert "a.txt: 1k B of 4k B of text are held out, though data.val_fraction is 0.01" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    caplog.clear()
    split([Document(f"{i:04}" * 250, f"book{i}#0") for i in range(6)], 0.01)  # a sixth is not a fifth
    split([Document(f"{i:04}" * 250, f"book{i}#0") for i in range(4)], 0.1)
    assert not caplog.records
    names = [f"book{i}" for i in range(1000)]
    small = next(name for name in names if group_of(Document("", f"{name}#0")) < 0.02 * 2**64)
    large = [name for name in names if group_of(Document("", f"{name}#0")) > 0.02 * 2**64][:40]
    split([Document("a" * 20, f"{small}#0"), *(Document(f"{name:>4}" * 250, f"{name}#0") for name in large)], 0.02)
    assert "a.txt: 20 B of " in caplog.text
    assert "Raise it." in caplog.text


@pytest.mark.parametrize("other", ["a b\nc\n", "a b\r\nc", "  a\tb c", "a\u00a0b\n\n\nc"])
def test_copies_that_differ_in_white_space_are_one_group_and_never_on_both_sides(other: str) -> None:
    text, others = "a b\nc", documents(30)
    assert group_of(Document(text)) == group_of(Document(other)) != group_of(Document("a b\nd"))
    copies = [Document(text, "first#0"), Document(other, "second#0")]
    for fraction in (0.1, 0.3, 0.5, 0.7):
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
        DataError, match=r"^a\.txt holds too little text .*: give a \.txt longer than 32 KiB, or several"
    ):
        split(docs, 0.1, "a.txt")


def test_the_source_that_is_too_small_is_named() -> None:
    with pytest.raises(DataError, match=r"^1\.txt holds too little text"):
        split_all([documents(30), documents(3)], 0.1)


def test_a_training_split_without_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"nothing to train on: give .* or lower data\.val_fraction"):
        split([Document("a"), Document("b")], 1 - 1e-9)
    with pytest.raises(DataError, match="1 more repeat their text"):
        split([Document("a", "x#1"), Document("a", "y#1")], 1e-9)
