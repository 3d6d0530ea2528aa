"""The embedded default corpus."""

import sysconfig
from pathlib import Path

import pytest

from colakit.data.corpus import StandardLibrary, read_stdlib
from colakit.data.document import Document, fail, hash64
from colakit.data.meter import Meter
from colakit.errors import DataError


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(read_stdlib())


def test_modules_and_topics_are_there_under_their_names(documents: list[Document]) -> None:
    by_id = {document.id: document.text for document in documents}
    assert by_id["asyncio/base_events.py"] == (
        Path(sysconfig.get_path("stdlib")) / "asyncio/base_events.py"
    ).read_bytes().decode("utf-8")
    assert '"assert" statement' in by_id["topics#assert"]
    assert len(by_id) == len(documents), "ids are unique"


def test_what_is_not_the_librarys_own_text_is_left_out(documents: list[Document]) -> None:
    ids = [document.id or "" for document in documents]
    folders = {part for name in ids for part in name.split("/")[:-1]}
    assert folders.isdisjoint({"site-packages", "test", "tests", "idle_test", "__pycache__", "_bundled"})
    assert not any("_sysconfigdata" in name for name in ids)
    assert "pydoc_data/topics.py" not in ids
    assert all(document.text.strip() for document in documents)


def test_code_tables_are_one_group(documents: list[Document]) -> None:
    tables = [document for document in documents if (document.id or "").startswith("encodings")]
    assert len(tables) > 50
    assert {document.hashes()[0] for document in tables} == {hash64(b"encodings")}
    assert "encodings#cp1250.py" in {document.id for document in tables}


def test_topics_are_one_group(documents: list[Document]) -> None:
    """Many are whole inside another: apart, training would see much of what is held out."""
    topics = [document for document in documents if (document.id or "").startswith("topics")]
    bodies = [" ".join(document.text.split("\n", 3)[-1].split()) for document in topics]  # without the heading
    words = [" ".join(document.text.split()) for document in topics]
    assert sum(any(body in other for other in words[:i] + words[i + 1 :]) for i, body in enumerate(bodies)) > 5
    assert {document.hashes()[0] for document in topics} == {hash64(b"topics")}


def test_the_order_is_that_of_paths(documents: list[Document]) -> None:
    names = [(document.id or "").replace("#", "/") for document in documents]
    first_topic = next(i for i, name in enumerate(names) if name.startswith("topics/"))
    assert names[:first_topic] == sorted(names[:first_topic])
    assert names[first_topic:] == sorted(names[first_topic:])


def test_a_python_without_its_source_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    with pytest.raises(DataError, match=r"no Python source .* --data PATH"):
        StandardLibrary().check()


def test_undecodable_and_empty_modules_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "os.py").write_text("import sys\n")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    (tmp_path / "empty.py").write_text("\n")
    (tmp_path / "config-3.11").mkdir()
    (tmp_path / "config-3.11" / "python-config.py").write_text("prefix = 'here'\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    assert [document.id for document in read_stdlib() if "topics#" not in (document.id or "")] == ["os.py"]


def test_reading_goes_on_anywhere(documents: list[Document]) -> None:
    whole = list(StandardLibrary().read(fail, (0, 0), Meter()))
    assert [document for _, document in whole] == documents
    position, _ = whole[700]
    assert list(StandardLibrary().read(fail, position, Meter())) == whole[701:]
