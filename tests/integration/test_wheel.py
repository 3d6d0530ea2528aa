"""The built wheel works from any folder, presets within."""

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (path,) = out.glob("*.whl")
    return path


def make_venv(folder: Path, *, sees_installed: bool) -> Path:
    """A fresh environment; `sees_installed` lets it import this one's packages, without its editable installs."""
    venv.create(folder, with_pip=True)
    if sees_installed:
        (site,) = folder.glob("lib/python*/site-packages")
        # A path in a .pth file is added as it is: the .pth files there, which make colakit editable, are not read.
        (site / "installed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_works_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    binaries = make_venv(tmp_path / "venv", sees_installed=True)
    subprocess.run(
        [binaries / "python", "-m", "pip", "install", "--no-deps", "--force-reinstall", "--no-index", str(wheel)],
        check=True,
        capture_output=True,
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*command: str) -> str:
        return subprocess.run(command, cwd=elsewhere, check=True, capture_output=True, text=True).stdout

    where = run(str(binaries / "python"), "-c", "import colakit; print(colakit.__file__)").strip()
    assert Path(where).is_relative_to(tmp_path / "venv")
    colakit = str(binaries / "colakit")
    names = [p["name"] for p in json.loads(run(colakit, "presets", "--json"))["presets"]]
    assert sorted(names) == sorted(p.stem for p in (ROOT / "presets").glob("*.toml"))
    sets = ("train.max_steps=1", "train.eval_tokens=512", "train.sample_tokens=1")
    trained = run(colakit, "train", "--smoke", "--json", *(x for s in sets for x in ("--set", s)))
    assert (elsewhere / json.loads(trained)["run_dir"] / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_full_install_through_the_constraints(wheel: Path, tmp_path: Path) -> None:
    binaries = make_venv(tmp_path / "venv", sees_installed=False)
    install = [binaries / "python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*install, "torch"], check=True)
    subprocess.run([*install, wheel], check=True)
    done = subprocess.run(
        [binaries / "colakit", "train", "--smoke", "--json", "--set", "train.max_steps=1"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout)["steps"] == 1
