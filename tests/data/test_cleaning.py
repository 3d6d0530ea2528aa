"""What is taken out of crawled text, and what must stay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colakit.config.load import resolve
from colakit.config.presets import preset_names
from colakit.config.schema import DataConfig
from colakit.data.cleaning import has_words, remove_crawl_markers, remove_urls


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("See https://a.b/c?d=e&f#g, then go.", "See , then go."),
        ("(http://x.org/y)", "()"),
        ("It ends at www.x.org.", "It ends at ."),
        ("WWW.X.ORG/Path and ftp://f.t/p!", " and !"),
        ('<a href="http://q.w/e">', '<a href="">'),
        ("no web address: www, http:, x.org, e.g. this", "no web address: www, http:, x.org, e.g. this"),
    ],
)
def test_addresses_go_and_the_sentence_stays(text: str, expected: str) -> None:
    assert remove_urls(text) == expected


MARKERS = [
    "Home",
    "| Share this: Facebook Twitter |",
    "Read more »",
    "  Copyright © 2024  ",
    "*** ADVERTISEMENT ***",
    "3 Comments",
    "Page 3 of 7",
    "Please enable JavaScript to view the comments.",
    "Cookie settings",
]
TEXT = [
    "Home is where the heart is.",
    "Read more books, he said.",
    "---",
    "",
    "He would share this with nobody.",
    "Next came the winter.",
    "    return home",
    "3",
]


def test_lines_of_a_page_go_and_lines_of_a_text_stay() -> None:
    lines = [line for pair in zip(TEXT, MARKERS, strict=False) for line in pair]
    assert remove_crawl_markers("\n".join(lines)) == "\n".join([*TEXT, ""])
    assert remove_crawl_markers("\r\n".join(TEXT)) == "\r\n".join(TEXT)
    for line in MARKERS:
        assert remove_crawl_markers(line) == ""


@given(st.text())
def test_a_second_time_finds_nothing_new(text: str) -> None:
    once = remove_crawl_markers(text)
    assert remove_crawl_markers(once) == once
    assert len(once) <= len(text)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("www.a." + "a" * 10**6, ""),
        ("-" * 10**6, "-" * 10**6),
        ("share this" + " post" * 10**5, "share this" + " post" * 10**5),  # too long a line for a marker
        ("http://" * 10**5, ""),
    ],
)
def test_long_runs_are_gone_through_once(text: str, left: str) -> None:
    """An expression that ran back and forth over them would take hours."""
    assert remove_crawl_markers(remove_urls(text)) == left


@pytest.mark.parametrize(("text", "words"), [("", 0), ("a", 1), (" a  b\nc ", 3)])
def test_words_are_parted_by_white_space(text: str, words: int) -> None:
    assert [has_words(text, n) for n in range(5)] == [n <= words for n in range(5)]


def test_it_is_off_by_default_and_on_in_the_paper_s_presets() -> None:
    def cleaned(config: DataConfig) -> tuple[bool, bool, int]:
        return config.remove_urls, config.remove_crawl_markers, config.min_words

    assert cleaned(DataConfig()) == (False, False, 0)
    for preset in preset_names():
        assert cleaned(resolve(preset).config.data) == (True, True, 50)
        assert cleaned(resolve(preset, smoke_run=True).config.data) == (False, False, 0)
        assert cleaned(resolve(preset, data="x").config.data) == (False, False, 0)
    assert cleaned(resolve("cola", data="x", sets=["data.min_words=7"]).config.data) == (False, False, 7)
