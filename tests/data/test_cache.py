"""The cache: where it is, and that a folder in it is whole or not there."""

import multiprocessing
import os
import pwd
import time
from pathlib import Path

import pytest

from colakit.config.schema import DataConfig
from colakit.data.cache import cache_root, cached_folder
from colakit.errors import DataError


def _killed(folder: str) -> None:
    def write(work: Path) -> None:
        (work / "half").write_text("x")
        os._exit(9)

    cached_folder(Path(folder), write)


def test_a_kill_leaves_no_folder_and_its_rest_is_swept_up_a_day_later(tmp_path: Path) -> None:
    folder = tmp_path / "key"
    process = multiprocessing.get_context("spawn").Process(target=_killed, args=(str(folder),))
    process.start()
    process.join()
    assert process.exitcode == 9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".unfinished-")
    cached_folder(folder, lambda work: (work / "whole").touch())
    assert left.exists(), "it might belong to a process at work"
    old = time.time() - 2 * 24 * 3600
    half = left / "key" / "half"
    for path in (left, left / "key"):
        os.utime(path, (old, old))
    cached_folder(tmp_path / "third", lambda work: (work / "whole").touch())
    assert half.exists(), "what is inside is being written"
    os.utime(half, (old, old))
    cached_folder(tmp_path / "other", lambda work: (work / "whole").touch())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "other", "third"]


def test_the_faster_of_two_processes_wins(tmp_path: Path) -> None:
    folder = tmp_path / "key"

    def write(work: Path) -> None:
        (work / "mine").touch()
        folder.mkdir()
        (folder / "theirs").touch()

    assert cached_folder(folder, write) == folder
    assert [path.name for path in folder.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [folder]


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root(DataConfig()) == Path("/home/me/.cache/colakit")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert cache_root(DataConfig()) == Path("/scratch/colakit")
    assert cache_root(DataConfig(cache_dir="~/mine")) == Path("/home/me/mine")


def test_without_a_home_folder_a_place_for_the_cache_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: {}[0])  # a user without an entry, as containers have
    with pytest.raises(DataError, match=r"that home folder is not known\. Set HOME, .*--set data\.cache_dir=PATH"):
        cache_root(DataConfig())
