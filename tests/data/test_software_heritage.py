"""Fetching blobs: their order, how many at a time, and which faults end it. test_hub.py does it over HTTP."""

import gzip
import threading
import time
import zlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from colakit.data import software_heritage
from colakit.data.document import Document
from colakit.data.software_heritage import Blob, fetch
from colakit.errors import DataError


class Archive:
    """In the place of the HTTP client: answers by blob, and remembers what was asked at one time."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.now = self.most = 0
        self.lock = threading.Lock()

    def get(self, url: str, timeout: float) -> SimpleNamespace:
        name = url.removeprefix(software_heritage.CONTENT_URL)
        with self.lock:
            self.asked.append(name)
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.002 * (zlib.crc32(name.encode()) % 5))
        with self.lock:
            self.now -= 1
        answer = self.answers.get(name, name)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, str):
            answer = SimpleNamespace(status_code=200, content=gzip.compress(answer.encode()), headers={})
        return answer


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Archive:
    archive = Archive()
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: archive)
    monkeypatch.setattr(software_heritage, "_PAUSES_S", (0.0, 0.0))
    return archive


def blob(name: str, encoding: str = "utf-8") -> Blob:
    return Blob(name, encoding, f"id {name}")


def test_many_are_fetched_at_a_time_and_come_in_order(archive: Archive) -> None:
    pulled = 0

    def blobs() -> Iterator[Blob]:
        nonlocal pulled
        for pulled in range(1, 101):
            yield blob(f"b{pulled}")

    for number, result in enumerate(fetch(blobs()), start=1):
        assert result == Document(f"b{number}", f"id b{number}")
        assert pulled - number < 32  # what waits is bounded
    assert number == 100
    assert 4 < archive.most <= 32


def test_nothing_more_is_asked_once_nobody_reads(archive: Archive) -> None:
    documents = fetch(blob(f"b{i}") for i in range(1000))
    next(documents)
    documents.close()
    asked = len(archive.asked)
    time.sleep(0.02)
    assert len(archive.asked) == asked <= 40
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("software-heritage")]


def test_an_error_keeps_its_place(archive: Archive) -> None:
    error = DataError("a row of its own")
    assert [str(getattr(result, "text", result)) for result in fetch([blob("a"), error, blob("b")])] == [
        "a",
        "a row of its own",
        "b",
    ]


@pytest.mark.parametrize(
    ("content", "headers", "encoding", "text"),
    [
        (gzip.compress("größe".encode("latin-1")), {}, "ISO-8859-1", "größe"),
        ("größe".encode(), {"content-encoding": "gzip"}, "UTF-8", "größe"),  # the client has unpacked it
        (gzip.compress(b"a\xffb"), {}, "UTF-8", "a\ufffdb"),
    ],
    ids=["packed", "unpacked by the client", "not of its encoding"],
)
def test_content_is_unpacked_and_decoded(
    archive: Archive, content: bytes, headers: dict[str, str], encoding: str, text: str
) -> None:
    archive.answers["b"] = SimpleNamespace(status_code=200, content=content, headers=headers)
    assert list(fetch([blob("b", encoding)])) == [Document(text, "id b")]


@pytest.mark.parametrize(
    ("status", "content", "encoding", "said"),
    [
        (404, b"", "utf-8", "HTTP status 404"),
        (403, b"", "utf-8", "HTTP status 403"),  # so answers S3 for what is not there, too
        (200, b"<html>", "utf-8", "damaged (Not a gzipped file"),
        (200, gzip.compress(b"text" * 99)[:-9], "utf-8", "damaged (Compressed file ended"),
        (200, gzip.compress(b"text"), "klingon", "cannot be decoded as 'klingon'"),
        (200, gzip.compress(b"\\ud83d"), "raw_unicode_escape", "cannot be decoded as 'raw_unicode_escape'"),
    ],
    ids=["gone", "refused", "not packed", "cut short", "unknown encoding", "half of a pair"],
)
def test_a_blob_that_stays_bad_is_asked_for_once(
    archive: Archive, status: int, content: bytes, encoding: str, said: str
) -> None:
    archive.answers["b"] = SimpleNamespace(status_code=status, content=content, headers={})
    results = list(fetch([blob("b", encoding), blob("c")]))
    assert said in str(results[0])
    assert isinstance(results[0], DataError)
    assert results[1] == Document("c", "id c")
    assert archive.asked.count("b") == 1


@pytest.mark.parametrize(
    "answer",
    [ConnectionResetError("reset by peer"), TimeoutError(), SimpleNamespace(status_code=503, content=b"", headers={})],
    ids=["reset", "timeout", "503"],
)
def test_an_archive_that_fails_three_times_ends_the_reading(archive: Archive, answer: object) -> None:
    archive.answers["b"] = answer
    documents = fetch([blob("a"), blob("b"), blob("c")])
    assert next(documents) == Document("a", "id a")
    with pytest.raises(
        DataError, match=r"archive cannot be read \(.*/b: (reset by peer|TimeoutError|HTTP status 503)\)"
    ):
        next(documents)
    assert archive.asked.count("b") == 3
