"""The run folder: one run's alone, and gone again where it could not be set up."""

import errno
import json
import os
from pathlib import Path

import pytest

from colakit.config.load import resolve
from colakit.errors import CheckpointError, ColakitError, ConfigError, RunError
from colakit.train import runs
from colakit.train.runs import RunFolder, create_run, plan_run_folder

CONFIG = resolve("cola-fan", smoke_run=True).config
DATA = {"fingerprint": "0123"}


def test_a_run_folder_holds_configuration_environment_and_data(tmp_path: Path) -> None:
    folder, sinks = create_run(tmp_path / "a" / "b", CONFIG, DATA, lambda f: ("sinks of", f.root))
    assert sinks == ("sinks of", folder.root)
    assert folder.root == tmp_path / "a" / "b"
    assert folder.load_config() == CONFIG
    assert json.loads(folder.data.read_text()) == DATA
    assert {p.name for p in folder.root.iterdir()} == {
        *("config.json", "environment.json", "data.json"),
        *(".lock", ".owner.json"),
    }


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert create_run(tmp_path, CONFIG, DATA, lambda _: None)[0].root == tmp_path


def test_runs_of_one_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "20260101-120000")
    roots = [create_run(None, CONFIG, DATA, lambda _: None)[0].root for _ in range(3)]
    assert [str(r) for r in roots] == [f"runs/cola-fan-20260101-120000{end}" for end in ("", "-1", "-2")]


def test_of_two_runs_that_start_at_once_one_takes_the_next_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run makes its folder between this one's look and its own making."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "20260101-120000")
    monkeypatch.setattr(runs, "plan_run_folder", _and_then(plan_run_folder, lambda root: root.mkdir(parents=True)))
    folder, _ = create_run(None, CONFIG, DATA, lambda _: None)
    assert folder.root.name == "cola-fan-20260101-120000-1"
    assert list(Path("runs/cola-fan-20260101-120000").iterdir()) == []


def test_of_two_runs_with_one_out_the_second_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = RunFolder(tmp_path / "run")

    def other_run(_: Path) -> None:
        other.root.mkdir()
        other.config.write_text("theirs")

    monkeypatch.setattr(runs, "plan_run_folder", _and_then(plan_run_folder, other_run))
    with pytest.raises(RunError, match="another run has taken it"):
        create_run(other.root, CONFIG, DATA, lambda _: None)
    assert other.config.read_text() == "theirs"


def _and_then(plan, act):  # type: ignore[no-untyped-def]
    """`plan`, and the first time `act` on what it returned."""
    acted = []

    def both(*arguments: object) -> Path:
        root: Path = plan(*arguments)
        if not acted:
            acted.append(root)
            act(root)
        return root

    return both


def test_sinks_that_fail_leave_no_folder(tmp_path: Path) -> None:
    def full_disk(_: RunFolder) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunError, match=r"cannot be written \(No space left on device\)\. Give another --out"):
        create_run(tmp_path / "run", CONFIG, DATA, full_disk)
    assert not (tmp_path / "run").exists()

    def interrupted(_: RunFolder) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_run(tmp_path / "a" / "b" / "run", CONFIG, DATA, interrupted)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    def fails(folder: RunFolder) -> None:
        folder.tensorboard.mkdir()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "mine").mkdir()
    for out in (tmp_path / "mine", tmp_path / "mine" / "new"):
        with pytest.raises(RunError):
            create_run(out, CONFIG, DATA, fails)
        assert list((tmp_path / "mine").iterdir()) == []


def test_a_name_no_folder_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Give another --out"):
        create_run(tmp_path / ("x" * 300), CONFIG, DATA, lambda _: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damaged", "error", "message"),
    [
        ("", CheckpointError, r"config\.json is missing or unreadable"),
        ('{"model": {', CheckpointError, r"config\.json is missing or unreadable"),
        ("[]", ConfigError, "not a table of sections"),
        ('{"model": 3}', ConfigError, "model = 3"),
    ],
)
def test_a_damaged_configuration_is_refused(
    tmp_path: Path, damaged: str, error: type[ColakitError], message: str
) -> None:
    folder, _ = create_run(tmp_path, CONFIG, DATA, lambda _: None)
    folder.config.write_text(damaged)
    with pytest.raises(error, match=message):
        folder.load_config()
