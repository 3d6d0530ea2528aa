"""Which files a path, a folder and a glob mean: the same for both, each once, and no pipe among them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from colakit.data.files import find_files
from colakit.errors import DataError


def write(path: Path, content: str | bytes = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def names(pattern: Path | str) -> list[str]:
    return [file.name for file in find_files(str(pattern))]


def refusal(pattern: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        find_files(str(pattern))
    return str(caught.value)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name in ("a.txt", "b/c.txt", "b/d/e.txt", "b/d/f.txt", "b/d/g.pdf", ".h/i.txt", "b/.j.txt"):
        write(tmp_path / "corpus" / name)
    return tmp_path / "corpus"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a.txt", "b/c.txt", "b/d/e.txt", "b/d/f.txt"]),
        ("/**", ["a.txt", "b/c.txt", "b/d/e.txt", "b/d/f.txt"]),
        ("/**/*.txt", ["a.txt", "b/c.txt", "b/d/e.txt", "b/d/f.txt"]),
        ("/**/**/*.txt", ["a.txt", "b/c.txt", "b/d/e.txt", "b/d/f.txt"]),
        ("/**/d/*", ["b/d/e.txt", "b/d/f.txt"]),
        ("/**/b/**/e.*", ["b/d/e.txt"]),
        ("/*.txt", ["a.txt"]),
        ("/*/[cx].txt", ["b/c.txt"]),
        ("/b/?/[!e].txt", ["d/f.txt"]),
        ("/?/d/e.txt", ["b/d/e.txt"]),
    ],
)
def test_a_glob_names_what_the_folder_names(corpus: Path, pattern: str, expected: list[str]) -> None:
    assert names(f"{corpus}{pattern}") == expected


@pytest.mark.parametrize("pattern", ["", "/**/*.txt", "/**/**/*.txt"])
def test_links_are_followed_and_each_file_is_read_once(corpus: Path, pattern: str) -> None:
    write(corpus.parent / "elsewhere" / "k.txt")
    (corpus / "linked").symlink_to(corpus.parent / "elsewhere")
    (corpus / "b" / "up").symlink_to("..")
    (corpus / "b" / "d" / "top").symlink_to(corpus)
    (corpus / "0.txt").symlink_to("a.txt")
    (corpus / "0").symlink_to("b")
    assert names(f"{corpus}{pattern}") == ["a.txt", "b/c.txt", "b/d/e.txt", "b/d/f.txt", "linked/k.txt"]


@pytest.mark.parametrize("pattern", ["", "/**/*.txt", "/*/d/*.txt"])
def test_an_unreadable_subfolder_is_named(corpus: Path, pattern: str, lock: Callable[[Path], None]) -> None:
    lock(corpus / "b" / "d")
    message = refusal(f"{corpus}{pattern}")
    assert f"{corpus}/b/d cannot be read: Permission denied" in message
    assert names(f"{corpus}/*.txt") == ["a.txt"], "what a glob does not reach is left alone"


def test_a_dangling_link_is_named(corpus: Path) -> None:
    (corpus / "gone.txt").symlink_to("nowhere")
    assert f"{corpus}/gone.txt cannot be read: No such file" in refusal(corpus)


def test_pipes_are_left_out_and_a_named_one_is_refused(corpus: Path) -> None:
    os.mkfifo(corpus / "x.txt")
    assert "x.txt" not in names(corpus)
    assert "x.txt" not in names(f"{corpus}/*.txt") + names(f"{corpus}/**")
    assert "x.txt is a pipe or a device" in refusal(corpus / "x.txt")
    assert "into a file first" in refusal("/dev/zero")
    assert "1 × pipe or device" in refusal(f"{corpus}/x*")


@pytest.mark.parametrize("name", ["notes.md", "README", "code.py", "page.rst", "latin.md"])
def test_one_named_text_of_any_ending_is_read_as_txt(corpus: Path, name: str) -> None:
    (file,) = find_files(str(write(corpus / name, b"caf\xe9" if name == "latin.md" else "plain\ttext\r\n\f")))
    assert (file.name, file.ending) == (name, ".txt")
    assert name not in names(corpus), "folders keep to the endings"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pdf", b"%PDF-1.7\n\x00\x01"),
        ("a.md", "text".encode("utf-16")),
        ("a.gz", b"\x1f\x8b\x08\x00"),
    ],
)
def test_a_named_file_that_is_no_plain_text_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    message = refusal(write(tmp_path / name, content))
    assert f"{name} is not plain text. colakit reads .txt, .jsonl, .jsonl.gz, .jsonl.zst and .parquet" in message


@pytest.mark.parametrize(("name", "content"), [("a.csv", b"a,b\n"), ("a.JSON", b"{}")])
def test_text_with_a_syntax_is_refused_by_its_ending(tmp_path: Path, name: str, content: bytes) -> None:
    message = refusal(write(tmp_path / name, content))
    assert f"colakit does not read {name[1:]}, whose syntax would be learned along. colakit reads .txt" in message
    assert "rename it to .txt" in message


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    try:
        Path(os.fsdecode(path)).write_text("text")
    except OSError:
        pytest.skip("this file system keeps names in Unicode")
    for pattern in (str(tmp_path), f"{tmp_path}/*.txt", os.fsdecode(path)):
        assert r"b'caf\xe9.txt'" in refusal(pattern)
        assert "is not UTF-8. Rename the file" in refusal(pattern)


def test_paths_that_the_system_refuses(
    corpus: Path, lock: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "cannot be read: File name too long" in refusal("x" * 5000)
    assert "~nobody-here/a.txt': that home folder is not known" in refusal("~nobody-here/a.txt")
    real_exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path != corpus / "b" / "x.txt" and real_exists(path))
    lock(corpus / "b")  # to be passed, not to be listed
    assert "cannot be read: Permission denied" in refusal(corpus / "b" / "x.txt")
