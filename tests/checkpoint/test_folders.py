"""Checkpoints as folders: whole or absent, every damage told by the file's name, retention, what a kill leaves."""

import json
import shutil
from pathlib import Path

import pytest

from colakit.checkpoint import folders
from colakit.checkpoint.folders import MANIFEST, Checkpoints, step_of, verify
from colakit.errors import CheckpointError

FILES = {"model.safetensors": bytes(range(256)) * 40, "state.json": b'{"step": 8}\n', "empty": b""}


def write(checkpoints: Checkpoints, step: int) -> Path:
    aside = checkpoints.begin(step)
    for name, content in FILES.items():
        (aside / name).write_bytes(content)
    return checkpoints.publish(aside)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run" / "checkpoints")


def test_what_is_written_is_found_and_whole(checkpoints: Checkpoints) -> None:
    assert (checkpoints.all(), checkpoints.newest()) == ([], None)
    paths = [write(checkpoints, step) for step in (8, 16, 123_456_789)]
    assert [path.name for path in paths] == ["step-00000008", "step-00000016", "step-123456789"]
    assert (checkpoints.all(), checkpoints.newest()) == (paths, paths[-1])
    assert [step_of(path) for path in paths] == [8, 16, 123_456_789]
    for path in paths:
        verify(path)
        assert {p.name for p in path.iterdir()} == {*FILES, MANIFEST}
    assert checkpoints.path_of(16) == paths[1]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[:-1])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "longer":
        path.write_bytes(content + b"\n")
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", MANIFEST])
@pytest.mark.parametrize("how", ["deleted", "cut", "empty", "longer", "flipped"])
def test_every_damage_is_told_by_the_name_of_the_file(checkpoints: Checkpoints, name: str, how: str) -> None:
    good, bad = write(checkpoints, 8), write(checkpoints, 16)
    damage(bad / name, how)
    if name == MANIFEST and how in ("cut", "longer"):
        verify(bad)  # white space at its end
        return
    with pytest.raises(CheckpointError, match="missing" if how == "deleted" else "damaged|missing") as caught:
        verify(bad)
    assert str(bad / name) in str(caught.value) or "of schema" in str(caught.value)
    assert checkpoints.newest() == bad, "it is not passed over in silence"
    assert checkpoints.newest_whole(before=17) == good
    assert checkpoints.newest_whole(before=8) is None


def test_every_bit_of_the_manifest_counts(checkpoints: Checkpoints) -> None:
    """But for white space: what it says is wrong, or it is no manifest, or it is of another version."""
    path = write(checkpoints, 8)
    content = (path / MANIFEST).read_bytes()
    for place in range(0, len(content), 3):
        if not content[place : place + 1].isspace():
            changed = bytearray(content)
            changed[place] ^= 1
            (path / MANIFEST).write_bytes(changed)
            with pytest.raises(CheckpointError, match=rf"{path / MANIFEST} is damaged|{path} is a .* of schema"):
                verify(path)


def test_another_schema_is_refused_by_its_number(checkpoints: Checkpoints) -> None:
    path = write(checkpoints, 8)
    manifest = json.loads((path / MANIFEST).read_text())
    for schema in (0, 2):
        (path / MANIFEST).write_text(json.dumps({**manifest, "schema": schema}))
        with pytest.raises(CheckpointError, match=rf"of schema {schema}, and this colakit reads schema 1\. Resume it"):
            verify(path)


def test_what_is_cut_short_is_no_checkpoint_and_is_swept(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(checkpoints, 8)
    aside = checkpoints.begin(16)
    (aside / "model.safetensors").write_bytes(b"half")
    assert checkpoints.all() == [first]
    honest = Path.rename
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        checkpoints.publish(aside)
    monkeypatch.setattr(Path, "rename", honest)
    assert checkpoints.all() == [first]
    checkpoints.sweep()
    assert list(checkpoints.folder.iterdir()) == [first]


def test_the_manifest_is_written_last_and_everything_is_on_disk_before_the_name(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    honest_sync, honest_rename = folders._sync, Path.rename
    monkeypatch.setattr(folders, "_sync", lambda path: (done.append(path.name), honest_sync(path))[1])

    def rename(path: Path, target: Path) -> Path:
        done.append("rename")
        return honest_rename(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    write(checkpoints, 8)
    assert done == [*sorted(FILES), MANIFEST, ".step-00000008", "rename", "checkpoints", "run"]


def test_others_are_removed_whole(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (2, 4, 6, 8):
        write(checkpoints, step)
    checkpoints.remove_all_but({4, 8, 99})
    assert [step_of(path) for path in checkpoints.all()] == [4, 8]
    assert len(list(checkpoints.folder.iterdir())) == 2
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed in the midst of removing
    checkpoints.remove_all_but({8})
    assert [step_of(path) for path in checkpoints.all()] == [8]
    monkeypatch.undo()
    checkpoints.sweep()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000008"]


def test_later_ones_are_abandoned_and_not_lost(checkpoints: Checkpoints) -> None:
    for _ in range(2):
        for step in (2, 4, 6):
            if not checkpoints.path_of(step).exists():
                write(checkpoints, step)
        renamed = checkpoints.abandon_behind(2)
        assert [step_of(path) for path in checkpoints.all()] == [2]
        for path in renamed:
            verify(path)
    names = {path.name for path in checkpoints.folder.iterdir()}
    assert names == {"step-00000002", *(f"abandoned-step-0000000{s}{n}" for s in (4, 6) for n in ("", "-1"))}
    checkpoints.sweep()
    assert {path.name for path in checkpoints.folder.iterdir()} == names
