"""What the machine is said to be: its commit, its memory under control groups, its GPU by NVML."""

import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from colakit import host
from colakit.host import describe_machine, free_memory, keep_freed_memory, total_memory

GIB = 2**30


def test_the_commit_is_that_of_colakits_own_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed colakit inside somebody's repository (their `.venv`, say) is at no commit of theirs."""

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=me", "-c", "user.email=me@here")
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / ".gitignore").write_text("installed.py\n")
    for name in ("tracked.py", "installed.py"):
        (tmp_path / name).write_text("")
    git("add", ".")
    git("commit", "-m", "one")
    monkeypatch.setattr(host, "__file__", str(tmp_path / "tracked.py"))
    described = describe_machine()
    assert (described.git_commit, described.git_dirty) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "tracked.py").write_text("changed")
    assert describe_machine().git_dirty is True
    monkeypatch.setattr(host, "__file__", str(tmp_path / "installed.py"))
    described = describe_machine()
    assert (described.git_commit, described.git_dirty) == (None, None)


def test_the_library_that_multiplies_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colakit.products.library", lambda: "one of them")
    assert describe_machine().products == "one of them"


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 GiB, 40 of them free, whose control groups are files below this folder."""
    monkeypatch.setattr(host, "_CONTROL_GROUPS", tmp_path)
    memory = SimpleNamespace(total=64 * GIB, available=40 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    return tmp_path


def be_in(groups: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (groups / "self").write_text(line + "\n")
    honest = Path.read_text

    def read_text(path: Path, *arguments: str) -> str:
        return honest(groups / "self" if path == Path("/proc/self/cgroup") else path, *arguments)

    monkeypatch.setattr(Path, "read_text", read_text)


def limit(folder: Path, names: tuple[str, str, str], limit: str, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\n{names[2]} {cached}\n")


NEW = ("memory.max", "memory.current", "inactive_file")
OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def test_without_a_limit_it_is_the_machines(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    be_in(groups, "0::/user.slice/me", monkeypatch)
    limit(groups / "user.slice/me", NEW, "max", GIB, 0)
    assert (total_memory(), free_memory()) == (64 * GIB, 40 * GIB)


def test_the_tightest_group_above_counts_and_its_cached_files_are_free(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_in(groups, "0::/user.slice/me", monkeypatch)
    limit(groups / "user.slice/me", NEW, str(16 * GIB), 2 * GIB, GIB)
    limit(groups / "user.slice", NEW, str(12 * GIB), 11 * GIB, 3 * GIB)
    limit(groups / "other", NEW, str(GIB), 0, 0)
    assert (total_memory(), free_memory()) == (12 * GIB, 4 * GIB)


def test_a_container_of_the_old_hierarchy(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    be_in(groups, "9:pids:/a\n4:cpu,memory:/box\n0::/", monkeypatch)
    limit(groups / "memory/box", OLD, str(8 * GIB), 5 * GIB, 2 * GIB)
    limit(groups / "a", OLD, str(GIB), 0, 0)
    assert (total_memory(), free_memory()) == (8 * GIB, 5 * GIB)


def test_a_machine_without_control_groups(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(path: Path, *_: str) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert (total_memory(), free_memory()) == (64 * GIB, 40 * GIB)


_FAULTS = """
import resource, sys
from colakit.host import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
import torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for n in range(40):
    before = faults()
    held = [torch.ones(2**20 * size) for size in (3, 12, 40)]  # of 12, 48 and 160 MB
    del held
print(faults() - before)
if sys.argv[1] == "keep":
    import psutil
    from colakit.host import give_back_freed_memory
    held = psutil.Process().memory_info().rss
    give_back_freed_memory()
    assert held - psutil.Process().memory_info().rss > 200 * 2**20
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_what_is_freed_is_kept_for_the_next_step() -> None:
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", _FAULTS, way], capture_output=True, text=True, check=True).stdout)
        for way in ("give", "keep")
    )
    assert given_back > 10_000
    assert kept < 100


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("asked"))
    keep_freed_memory()
