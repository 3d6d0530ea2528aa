"""Local files: what is read, and that every fault is one message that names file, line and remedy."""

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colakit.config.schema import DataConfig
from colakit.data.document import Document
from colakit.data.lines import MAX_CHUNK_BYTES, MAX_LINE_CHARS, MIN_CHUNK_BYTES, _chunks, _pieces
from colakit.data.sources import Source, Tally
from colakit.errors import DataError


def source(path: Path | str, **options: Any) -> Source:  # Any: a field of any type
    config = DataConfig(source="files", path=str(path), **options)
    (only,) = config.mixture.values()
    return Source("data", only, config, Path("/nonexistent"))


def read(path: Path | str, **options: Any) -> list[Document]:
    return [document for _, document in source(path, **options).documents(Tally())]


def refusal(path: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    return str(caught.value)


def zstd(data: bytes) -> bytes:
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    compress = {".gz": gzip.compress, ".zst": zstd}.get(path.suffix, bytes)
    path.write_bytes(compress(data))
    return path


# --- what is read


def test_jsonl_texts_and_ids(tmp_path: Path) -> None:
    rows = '{"text": "a\\u2028b", "id": "x#1"}\n\n{"text": "c", "id": 7}\r\n{"text": " \\n"}\n{"text": "d"}'
    expected = [Document("a\u2028b", "x#1"), Document("c", "7"), Document("d", None)]
    assert read(write(tmp_path / "a.jsonl", rows)) == expected
    assert read(write(tmp_path / "b.jsonl.gz", rows)) == expected
    assert read(write(tmp_path / "c.jsonl.zst", rows)) == expected


def test_a_byte_order_mark_is_taken_off(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", b"\xef\xbb\xbfhello\n")) == [Document("hello\n", None)]
    assert read(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}')) == [Document("a", None)]


def test_a_folder_is_read_in_order_without_hidden_files(tmp_path: Path) -> None:
    write(tmp_path / "b" / "two.jsonl", '{"text": "two"}')
    write(tmp_path / "a.jsonl", '{"text": "one"}')
    write(tmp_path / "c.JSONL", '{"text": "three"}')
    write(tmp_path / ".git" / "x.jsonl", "broken")
    write(tmp_path / ".hidden.jsonl", "broken")
    write(tmp_path / "notes.md", "not read")
    assert [document.text for document in read(tmp_path)] == ["one", "two", "three"]


def test_a_glob_matches_at_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "deep" / "er" / "a.txt", "one")
    write(tmp_path / "deep" / "b.txt", "two")
    assert [document.text for document in read(f"{tmp_path}/**/*.txt")] == ["two", "one"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [document.text for document in read("~/deep/**/*.txt")] == ["two", "one"]


PARAGRAPHS = "word " * 1000 + "\n\n"  # two of them fill a document


def test_a_txt_file_larger_than_what_is_held_out_is_cut_the_others_are_whole(tmp_path: Path) -> None:
    one = read(write(tmp_path / "one" / "a.txt", PARAGRAPHS * 6))
    assert len(one) == 3
    assert {document.id for document in one} == {None}
    write(tmp_path / "few" / "a.txt", PARAGRAPHS * 6)
    write(tmp_path / "few" / "sub" / "b.txt", "b")
    few = read(tmp_path / "few")
    assert [document.id for document in few] == [None, None, None, "sub/b.txt#0"]
    for index in range(200):
        write(tmp_path / "many" / f"{index:03}.txt", PARAGRAPHS * 3)
    many = read(tmp_path / "many")
    assert [document.id for document in many[:3]] == ["000.txt#0", "000.txt#1", "001.txt#0"]
    assert len({document.hashes()[0] for document in many}) == 200


def test_files_that_differ_behind_a_hash_sign_are_two_groups(tmp_path: Path) -> None:
    names = ["C#/a.txt", "C#/b.txt", "issue #1.txt", "issue #2.txt", "issue %231.txt"]
    for name in names:
        write(tmp_path / name, name)
    write(tmp_path / "large.jsonl", json.dumps({"text": PARAGRAPHS}))
    documents = [document for document in read(tmp_path) if document.id]
    assert [document.text for document in documents] == names
    assert len({document.hashes()[0] for document in documents}) == 5


LINES = st.lists(
    st.sampled_from(["\n", " \r\n", "é" * 700 + "\n", "x" * 5000 + "\n", "y" * 40_000 + "\n"]), max_size=60
)


@given(LINES)
def test_txt_documents_joined_are_the_text_and_begin_after_8_kib(lines: list[str]) -> None:
    chunks = list(_chunks(iter(lines)))
    assert "".join(chunks) == "".join(lines)
    for chunk, following in pairwise(chunks):
        assert len(chunk.encode()) >= MIN_CHUNK_BYTES
        assert len(chunk.encode()) < MAX_CHUNK_BYTES + 40_001 or not chunk[-2:].strip()
        assert chunk.strip()
        assert following.splitlines()[0].strip(), "blank lines stay with the text before them"
        is_after_blank = not chunk.splitlines()[-1].strip()
        assert is_after_blank or len(chunk.encode()) >= MAX_CHUNK_BYTES


def test_a_giant_line_is_cut_at_spaces_and_loses_nothing() -> None:
    line = "word " * 500_000 + "z" * (MAX_LINE_CHARS + 5)
    pieces = list(_pieces(line))
    assert "".join(pieces) == line
    assert all(len(piece) <= MAX_LINE_CHARS for piece in pieces)
    assert pieces[0].endswith("word ")
    chunks = list(_chunks(iter(pieces)))
    assert "".join(chunks) == line
    assert all(len(chunk) < 2 * MAX_CHUNK_BYTES for chunk in chunks)


def test_parquet_texts_and_ids(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.array(["a", " ", "b"])
    for column in (texts, texts.cast(pa.large_string()), texts.dictionary_encode()):
        path = tmp_path / "a[1].parquet"
        pq.write_table(pa.table({"text": column, "id": [1, 2, 3], "other": [0, 0, 0]}), path)
        assert read(path) == [Document("a", "1"), Document("b", "3")]
    numbers = [f"row {number}" for number in range(5000)]
    pq.write_table(pa.table({"text": numbers}), path)
    assert [document.text for document in read(path)] == numbers


# --- faults


def test_a_missing_path_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path / "shakespeare.txt", "x")
    message = refusal(tmp_path / "shakespear.txt")
    assert "no such file or folder" in message
    assert f"Did you mean {tmp_path}/shakespeare.txt?" in message
    assert "Not even its folder" in refusal(tmp_path / "nowhere" / "a.txt")
    assert "no file matches" in refusal(f"{tmp_path}/*.jsonl")


def test_no_supported_file_lists_what_is_read_and_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "d" / "a.pdf", "x")
    for path in (tmp_path / "d", f"{tmp_path}/d/*"):
        message = refusal(path)
        assert "1 × .pdf" in message
        assert ".txt, .jsonl, .jsonl.gz, .jsonl.zst and .parquet" in message
    (tmp_path / "empty").mkdir()
    assert "no file at all" in refusal(tmp_path / "empty")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_an_empty_file_and_one_of_blanks(tmp_path: Path, name: str) -> None:
    assert f"{name} is empty" in refusal(write(tmp_path / name, ""))
    assert read(write(tmp_path / name, " \n\n")) == []


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_binary_and_other_encodings_name_the_line(tmp_path: Path, name: str) -> None:
    good = b'{"text": "a"}\n'
    binary = refusal(write(tmp_path / name, good + b'{"te\0xt": 1}\n'))
    assert f"{name}, line 2: a NUL byte" in binary
    latin = refusal(write(tmp_path / name, good + good + b'{"text": "caf\xe9"}\n'))
    assert f"{name}, line 3: byte 0xe9 is not UTF-8" in latin
    assert "iconv -f latin1 -t utf-8" in latin


def test_damaged_zstandard(tmp_path: Path) -> None:
    whole = zstd(b"".join(json.dumps({"text": str(i) * 9}).encode() + b"\n" for i in range(90_000)))
    path = tmp_path / "a.jsonl.zst"
    for damaged in (whole[: len(whole) // 2], b"not zstd at all", whole[:-100] + bytes(100)):
        path.write_bytes(damaged)
        message = refusal(path)
        assert "a.jsonl.zst, after line" in message
        assert "`zstd -t" in message
    path.write_bytes(whole + zstd(b'{"text": "one more frame"}\n'))
    assert read(path)[-1].text == "one more frame"


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(json.dumps({"text": str(i) * 9}).encode() + b"\n" for i in range(5000)))
    path = tmp_path / "a.jsonl.gz"
    for content in (whole[: len(whole) // 2], whole[:-8] + b"\0" * 8):
        path.write_bytes(content)
        message = refusal(path)
        assert "a.jsonl.gz, after line" in message
        assert "truncated or damaged" in message
    path.write_bytes(b"not gzip at all")
    assert "a.jsonl.gz: no gzip data, though its name ends in .gz" in refusal(path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{'text': 'a'}", "not valid JSON (Expecting property name enclosed in double quotes, column 2)"),
        ("[" * 100_000, "not valid JSON"),
        ('["a"]', "a list, not an object"),
        ("null", "null, not an object"),
        ('{"body": "a", "title": "b"}', "no 'text' (its keys: 'body', 'title')"),
        ("{}", "no 'text' (its keys: none)"),
        ('{"text": 3}', "'text' is a number, not a string"),
        ('{"text": null}', "'text' is null, not a string"),
        ('{"text": "a", "id": [1]}', "'id' is a list"),
        ('{"text": "a", "id": true}', "'id' is true or false"),
        ('{"text": "cut \\ud83d"}', "half of a surrogate pair (\\ud83d)"),
    ],
)
def test_a_bad_jsonl_line_is_named(tmp_path: Path, line: str, expected: str) -> None:
    message = refusal(write(tmp_path / "a.jsonl", '{"text": "good"}\n\n' + line + "\n"))
    assert "a.jsonl, line 3: " in message
    assert expected in message


def test_bad_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 nonsense PAR1")
    assert "not a parquet file, or a damaged one" in refusal(path)
    pq.write_table(pa.table({"body": ["a"]}), path)
    assert "no column 'text' (its columns: 'body')" in refusal(path)
    pq.write_table(pa.table({"text": [1]}), path)
    assert "of type int64, not string" in refusal(path)
    pq.write_table(pa.table({"text": pa.array([1]).dictionary_encode()}), path)
    assert "of type int64, not string" in refusal(path)
    pq.write_table(pa.table({"text": ["a", None]}), path)
    assert "row 1: 'text' is null" in refusal(path)


def test_the_check_before_a_run_finds_a_missing_path_and_reads_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        source(tmp_path / "a.txt").check()
    source(write(tmp_path / "a.jsonl", "broken")).check()
