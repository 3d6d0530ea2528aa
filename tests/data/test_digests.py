"""Hashes of files: remembered while the file is the same, never beyond that."""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from colakit.data.cache import sweep, write_json
from colakit.data.digests import file_digest
from colakit.errors import DataError

LARGE = b"0123456789abcdef" * 2**16


def old_file(path: Path, content: bytes = LARGE, age_s: float = 60.0) -> Path:
    path.write_bytes(content)
    os.utime(path, (time.time() - age_s, time.time() - age_s))
    return path


def expected(content: bytes) -> str:
    return hashlib.blake2b(content).hexdigest()[:32]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that were really read."""
    names: list[str] = []
    honest = hashlib.file_digest

    def counted(file: object, *args: object) -> object:
        names.append(Path(file.name).name)  # type: ignore[attr-defined]  # an open file
        return honest(file, *args)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return names


def test_a_large_settled_file_is_read_once(tmp_path: Path, hashed: list[str]) -> None:
    path = old_file(tmp_path / "a")
    assert [file_digest(path, tmp_path / "cache") for _ in range(3)] == [expected(LARGE)] * 3
    assert hashed == ["a"]
    (tmp_path / "link").symlink_to(path)
    assert file_digest(tmp_path / "link", tmp_path / "cache") == expected(LARGE)
    assert hashed == ["a"], "the same file under another name"


@pytest.mark.parametrize("age_s", [0.0, 1.0, -100.0])
def test_a_file_that_changed_just_now_is_read_again(tmp_path: Path, hashed: list[str], age_s: float) -> None:
    path = old_file(tmp_path / "a", age_s=age_s)
    for _ in range(2):
        file_digest(path, tmp_path / "cache")
    assert hashed == ["a", "a"]


def test_small_files_leave_nothing_behind(tmp_path: Path, hashed: list[str]) -> None:
    path = old_file(tmp_path / "a", b"small")
    assert {file_digest(path, tmp_path / "cache") for _ in range(2)} == {expected(b"small")}
    assert hashed == ["a", "a"]
    assert not (tmp_path / "cache").exists()


def test_an_edit_that_keeps_size_and_modification_time_is_seen(tmp_path: Path) -> None:
    path = old_file(tmp_path / "a")
    before = path.stat()
    assert file_digest(path, tmp_path / "cache") == expected(LARGE)
    edited = LARGE.replace(b"9", b"!")
    time.sleep(0.02)  # the step of the file system's clock
    path.write_bytes(edited)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_digest(path, tmp_path / "cache") == expected(edited)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"stamp": 1}', b"\xff"])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, content: bytes) -> None:
    path = old_file(tmp_path / "a")
    file_digest(path, tmp_path / "cache")
    (record,) = (tmp_path / "cache" / "digests").iterdir()
    record.write_bytes(content)
    assert file_digest(path, tmp_path / "cache") == expected(LARGE)


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert file_digest(old_file(tmp_path / "a"), tmp_path / "cache") == expected(LARGE)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt cannot be read: No such file"):
        file_digest(tmp_path / "a.txt", tmp_path)


def test_small_files_of_the_cache_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"n": 1})
    honest = Path.write_text

    def full(file: Path, *_args: object, **_options: object) -> int:
        honest(file, "{half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"n": 2})
    assert path.read_text() == '{"n": 1}'
    assert list(path.parent.iterdir()) == [path]


def test_sweeping_is_not_disturbed_by_what_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".part-00000.arrow.77").touch()
    honest = Path.stat

    def gone(path: Path, **options: Any) -> os.stat_result:
        if path.name.startswith(".part"):
            raise FileNotFoundError(path)
        return honest(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", gone)
        sweep(tmp_path, ".part*")
    old = time.time() - 25 * 3600
    os.utime(tmp_path / ".part-00000.arrow.77", (old, old))
    sweep(tmp_path, ".part*")
    assert list(tmp_path.iterdir()) == [], "what is old and there goes"
