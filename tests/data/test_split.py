"""The held-out split: by group, whatever the order, and without a text on both sides."""

import logging
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colakit.data.document import Document
from colakit.data.split import Side, group_hash, split_documents
from colakit.errors import DataError

IDS = st.one_of(st.none(), st.sampled_from(["a", "b", "c#1", "c#2", "d#1", "d#2", "e#0"]))
DOCUMENTS = st.lists(st.builds(Document, st.sampled_from(["w", "x", "y", "z", "zz"]), IDS), min_size=1, max_size=12)


def documents(n: int) -> list[Document]:
    return [Document(f"text {i}", f"book{i // 3}#{i}") for i in range(n)]


@pytest.mark.parametrize(("name", "group"), [(None, "t"), ("a", "t"), ("a#1", "a"), ("a#1#2", "a"), ("#1", "")])
def test_the_group_is_the_part_of_the_id_before_a_hash_sign_else_the_text(name: str | None, group: str) -> None:
    assert Document("t", name).group == group


@given(DOCUMENTS, st.floats(0.01, 0.6), st.randoms(use_true_random=False))
def test_properties(docs: list[Document], fraction: float, rng: random.Random) -> None:
    try:
        split = split_documents(docs, fraction)
    except DataError:
        return
    sides = [split.side(document) for document in docs]
    held = {d.group for d, s in zip(docs, sides, strict=True) if s is Side.HELD_OUT}
    rest = {d.group for d, s in zip(docs, sides, strict=True) if s is not Side.HELD_OUT}
    assert held.isdisjoint(rest), "a group is on one side"
    held_texts = {d.words for d, s in zip(docs, sides, strict=True) if s is Side.HELD_OUT}
    train_texts = {d.words for d, s in zip(docs, sides, strict=True) if s is Side.TRAIN}
    assert held_texts.isdisjoint(train_texts), "no text is on both sides"
    assert (split.documents, split.held_out_documents, split.dropped_documents) == tuple(
        sides.count(side) for side in (Side.TRAIN, Side.HELD_OUT, Side.DUPLICATE)
    )
    assert split.text_bytes == sum(len(d.text) for d, s in zip(docs, sides, strict=True) if s is not Side.DUPLICATE)
    shuffled = rng.sample(docs, len(docs))
    assert [split_documents(shuffled, fraction).side(document) for document in docs] == sides


def test_the_share_is_about_the_fraction() -> None:
    docs = [Document(f"text {i}") for i in range(5000)]
    split = split_documents(docs, 0.1)
    assert 400 < split.held_out_documents < 600  # five standard deviations are 106
    assert split.held_out_groups == {h for h in map(group_hash, docs) if h / 2**64 < 0.1}


def test_a_decision_does_not_depend_on_the_other_documents() -> None:
    few, many = documents(600), documents(3000)
    split, larger = split_documents(few, 0.05), split_documents(many, 0.05)
    assert [split.side(d) for d in few] == [larger.side(d) for d in few]


def held_out(docs: list[Document], fraction: float) -> list[Document]:
    split = split_documents(docs, fraction)
    return [document for document in docs if split.side(document) is Side.HELD_OUT]


def test_a_small_corpus_holds_out_the_smallest_hash() -> None:
    docs = [Document("one"), Document("two"), Document("six")]
    assert held_out(docs, 1e-9) == [min(docs, key=group_hash)]


SIZES = st.lists(st.integers(1, 10_000), min_size=2, max_size=9)


@given(SIZES, st.integers(0, 99))
def test_the_smallest_hash_of_n_groups_holds_out_at_most_an_nth(sizes: list[int], salt: int) -> None:
    docs = [Document(chr(97 + index) * size, f"{salt}-{index}#0") for index, size in enumerate(sizes)]
    held = held_out(docs, 1e-9)
    assert len(held) == 1
    assert len(held[0].text) * len(docs) <= sum(sizes)


@given(SIZES, st.integers(0, 99), st.floats(0.01, 0.6))
def test_more_than_half_of_the_text_is_never_one_held_out_group(sizes: list[int], salt: int, fraction: float) -> None:
    docs = [
        Document(chr(97 + index) * size, f"{salt}-{index}#0") for index, size in enumerate([*sizes, sum(sizes) + 1])
    ]
    assert docs[-1] not in held_out(docs, fraction)


def test_a_lopsided_split_is_told(caplog: pytest.LogCaptureFixture) -> None:
    split_documents([Document(f"{i:04}" * 250, f"book{i}#0") for i in range(4)], 0.01)
    assert "1kB of 4kB of text are held out, though data.val_fraction is 0.01" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    caplog.clear()
    split_documents([Document(f"{i:04}" * 250, f"book{i}#0") for i in range(6)], 0.01)  # a sixth is not a fifth
    split_documents([Document(f"{i:04}" * 250, f"book{i}#0") for i in range(4)], 0.1)
    assert not caplog.records


@pytest.mark.parametrize("other", ["a b\nc\n", "a b\r\nc", "  a\tb c", "a\u00a0b\n\n\nc"])
def test_copies_that_differ_in_white_space_are_one_group_and_never_on_both_sides(other: str) -> None:
    text, others = "a b\nc", documents(30)
    assert group_hash(Document(text)) == group_hash(Document(other)) != group_hash(Document("ab\nc"))
    copies = [Document(text, "first#0"), Document(other, "second#0")]
    for fraction in (0.1, 0.3, 0.5, 0.7):
        split = split_documents([*copies, *others], fraction)
        assert Counter(map(split.side, copies)) in (
            {Side.TRAIN: 2},
            {Side.HELD_OUT: 2},
            {Side.HELD_OUT: 1, Side.DUPLICATE: 1},
        )


def test_a_copy_of_held_out_text_is_dropped_from_training() -> None:
    docs = documents(30)
    held = next(d for d in docs if split_documents(docs, 0.05).side(d) is Side.HELD_OUT)
    copy = next(Document(held.text, f"copy{i}#0") for i in range(100) if group_hash(Document("", f"copy{i}#0")) > 2**63)
    split = split_documents([*docs, copy], 0.05)
    assert split.side(copy) is Side.DUPLICATE
    assert split.dropped_documents == 1


@pytest.mark.parametrize("docs", [[Document("a")], [Document("a"), Document("a")], documents(3)])
def test_one_group_is_refused(docs: list[Document]) -> None:
    with pytest.raises(
        DataError, match=r"^a\.txt holds too little text .*: give a \.txt longer than 32 KiB, or several"
    ):
        split_documents(docs, 0.1, source="a.txt")


def test_a_training_split_without_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"nothing to train on: give .* or lower data\.val_fraction"):
        split_documents([Document("a"), Document("b")], 1 - 1e-9)
    with pytest.raises(DataError, match="1 more repeat their text"):
        split_documents([Document("a", "x#1"), Document("a", "y#1")], 1e-9)


def test_the_fingerprint_knows_texts_ids_order_and_sides() -> None:
    docs = documents(30)
    prints = {
        split_documents(variant, fraction).fingerprint
        for variant, fraction in [
            (docs, 0.01),
            (docs, 0.5),
            (docs[::-1], 0.01),
            ([*docs[:-1], Document("other", docs[-1].id)], 0.01),
            ([*docs[:-1], Document(docs[-1].text, "book9#other")], 0.01),
            ([Document(d.text) for d in docs], 0.01),
            ([Document(d.text, "") for d in docs], 0.01),
        ]
    }
    assert len(prints) == 7
    assert split_documents(docs, 0.01).fingerprint == split_documents(iter(docs), 0.01).fingerprint


def test_the_fingerprint_and_the_check_know_names_that_change_no_side() -> None:
    docs = documents(30)
    renamed = [*docs[:-1], Document(docs[-1].text, "book9#28")]
    assert (docs[-1].id, docs[-1].group) == ("book9#29", renamed[-1].group)
    split = split_documents(docs, 0.01)
    assert list(split.checked(docs)) == docs
    assert split_documents(renamed, 0.01).fingerprint != split.fingerprint
    with pytest.raises(DataError, match="changed while it was being read"):
        list(split.checked(renamed))


def test_the_fingerprint_knows_where_a_text_ends() -> None:
    pairs = [[Document("ab"), Document("c")], [Document("a"), Document("bc")]]
    assert len({split_documents(pair, 1e-9).fingerprint for pair in pairs}) == 2
