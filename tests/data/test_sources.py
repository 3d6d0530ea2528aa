"""Local files: what is read, and that every fault is one message that names file, line and remedy."""

import gzip
import json
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colakit.config.schema import DataConfig
from colakit.data import local, tables
from colakit.data.document import Document
from colakit.data.lines import LINE_PART_CHARS, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, _chunks, _line_parts
from colakit.data.sources import END, MOST_LISTED, START, Source, Tally
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
    inside = "a\n\ufeffb\n"
    assert read(write(tmp_path / "inside.txt", inside)) == [Document(inside, piece=0)], "only where it is one"
    assert read(write(tmp_path / "a.txt", b"\xef\xbb\xbfhello\n")) == [Document("hello\n", piece=0)]
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


def test_a_txt_by_itself_is_cut_into_pieces_and_each_of_several_is_whole(tmp_path: Path) -> None:
    one = read(write(tmp_path / "one" / "a.txt", PARAGRAPHS * 6))
    assert [(document.id, document.piece) for document in one] == [(None, 0), (None, 1), (None, 2)]
    for folder in (tmp_path / "one", f"{tmp_path}/one/*.txt"):
        assert [document.id for document in read(folder)] == ["a.txt#0", "a.txt#1", "a.txt#2"]
    write(tmp_path / "one" / "sub" / "b.txt", "b")
    more = read(tmp_path / "one")
    assert [document.id for document in more] == ["a.txt#0", "a.txt#1", "a.txt#2", "sub/b.txt#0"]
    assert len({document.hashes()[0] for document in more}) == 2


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
    line = "word " * 500_000 + "z" * (5 * LINE_PART_CHARS)
    parts = list(_line_parts(line))
    assert "".join(parts) == line
    assert all(LINE_PART_CHARS <= len(part) <= 2 * LINE_PART_CHARS for part in parts[:-1])
    assert parts[0].endswith("word ")
    assert parts[-2] == "z" * (2 * LINE_PART_CHARS), "without a space at twice that"
    chunks = list(_chunks(iter(parts)))
    assert "".join(chunks) == line
    assert all(len(chunk) <= 2 * MAX_CHUNK_BYTES for chunk in chunks)


def test_the_size_of_a_document_is_in_bytes() -> None:
    for letter in "xé漢":
        line = letter * 99 + "\n"
        chunks = list(_chunks(iter([line] * 2000)))
        sizes = {len(chunk.encode()) for chunk in chunks[:-1]}
        assert sizes == {-(-MAX_CHUNK_BYTES // len(line.encode())) * len(line.encode())}


WORDS = st.sampled_from(["a ", "漢" * 900, "é" * 5000, "word " * 3000, "\n", "\n\n", "x" * 20_000, " "])


@given(st.lists(WORDS, min_size=1, max_size=25), st.floats(0.0, 1.0))
def test_what_is_appended_to_a_text_moves_nothing_to_another_piece(words: list[str], share: float) -> None:
    text = "".join(words)
    n = int(share * len(text))
    with tempfile.TemporaryDirectory() as folder:
        before, after = (read(write(Path(folder) / "a.txt", part)) if part.strip() else [] for part in (text[:n], text))
    for one, two in zip(before, after, strict=False):
        assert one.piece == two.piece
        assert two.text.startswith(one.text.rstrip())
    assert len(before) <= len(after)


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
    pq.write_table(pa.table({"text": [None, None]}), path)
    assert "row 0: 'text' is null" in refusal(path)
    careless = pa.array([b"ok", b"\xed\xa0\xbd", b"end"]).view(pa.string())
    pq.write_table(pa.table({"text": careless, "id": careless}), path)
    assert "row 1: 'text' is not UTF-8" in refusal(path)
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "two.parquet")
    assert "several columns are called 'text'. Rename all but one." in refusal(tmp_path / "two.parquet")
    assert read(path, on_bad_record="skip") == [Document("ok", "ok"), Document("end", "end")]


def test_the_check_before_a_run_finds_a_missing_path_and_reads_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        source(tmp_path / "a.txt").check()
    source(write(tmp_path / "a.jsonl", "broken")).check()


# --- what a source chooses, and where reading goes on


def numbered(path: Path, n: int = 60) -> Path:
    return write(path, "".join(json.dumps({"text": f"text number {i}", "id": str(i)}) + "\n" for i in range(n)))


def test_parts_are_disjoint_and_join_to_the_whole(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 300)
    parts = [read(path, part=f"{i}/3") for i in (1, 2, 3)]
    assert all(len(part) > 60 for part in parts)
    joined = [document for part in parts for document in part]
    assert sorted(joined, key=lambda document: int(document.id or "")) == read(path)
    grouped = write(tmp_path / "b.jsonl", '{"text": "x", "id": "book#1"}\n{"text": "y", "id": "book#2"}\n')
    assert {len(read(grouped, part=f"{i}/2")) for i in (1, 2)} == {0, 2}, "a group stays together"


def test_chapters_of_a_book_are_of_one_part(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"chapter {i}", "id": f"book{i % 7}#{i}"}) for i in range(70)]
    path = write(tmp_path / "a.jsonl", "\n".join(rows))
    for part in ("1/3", "2/3", "3/3"):
        books = Counter((document.id or "").partition("#")[0] for document in read(path, part=part))
        assert set(books.values()) <= {10}


def test_a_limit_ends_with_the_document_that_reaches_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": "é" * 50}) + "\n" for _ in range(40)))
    assert [len(read(path, max_mb=mb)) for mb in (0.0001, 0.00011, 0.001, 1.0)] == [1, 2, 10, 40]
    with path.open("a") as file:
        file.write("broken\n")
    tally = Tally()
    assert len(list(source(path, max_mb=0.004).documents(tally))) == 40, "what lies behind is not looked at"
    assert tally.n_bytes == 4000
    assert list(source(path, max_mb=0.004).documents(tally, (0, 40))) == []
    with pytest.raises(DataError, match="line 41"):
        read(path, max_mb=0.0041)


def test_bad_records_fail_or_are_counted_and_listed(tmp_path: Path) -> None:
    lines = b'{"text": "a b"}\nnonsense\n{"text": "caf\xe9"}\n{"text": 3}\n\n{"text": "short"}\n{"text": "c d"}\n{\n'
    path = write(tmp_path / "a.jsonl", lines)
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not valid JSON"):
        read(path)
    tally = Tally()
    found = source(path, on_bad_record="skip", min_words=2).documents(tally)
    assert [document.text for _, document in found] == ["a b", "c d"]
    assert (tally.n_bad, tally.short) == (4, 1)
    assert [message.split(":")[0] for message in tally.bad] == [f"{path}, line {n}" for n in (2, 3, 4, 8)]
    many = write(tmp_path / "b.jsonl", '{"text": "a"}\n' + "x\n" * (MOST_LISTED + 5))
    tally = Tally()
    list(source(many, on_bad_record="skip").documents(tally))
    assert (tally.n_bad, len(tally.bad)) == (MOST_LISTED + 5, MOST_LISTED)


def test_a_damaged_file_is_no_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 9999)[:-9])
    with pytest.raises(DataError, match="truncated or damaged"):
        read(path, on_bad_record="skip")


def _mixed_folder(folder: Path) -> Path:
    """Files of all kinds, with good, short, blank and bad records, bad ones first and last among them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    good = [json.dumps({"text": f"good line {i}"}) for i in range(6)]
    write(folder / "a.jsonl", "\n".join(["bad", *good[:2], "bad", "bad", '{"text": "x"}', *good[2:4], "bad"]))
    write(folder / "b.jsonl.gz", "\n".join(["bad", "bad", *good, '{"text": "y"}']))
    write(folder / "c.txt", b"one line\n\xff\xfe bad\nanother line\n" + b"word " * 8000)
    write(folder / "d.jsonl", "bad\n")
    pq.write_table(pa.table({"text": ["row one of some", None, "row two of some", None]}), folder / "e.parquet")
    return folder


def test_reading_goes_on_behind_any_document_and_tells_of_nothing_twice(tmp_path: Path) -> None:
    """A resumed call told again of the bad records of the file that it goes on in."""
    options: dict[str, Any] = {"on_bad_record": "skip", "min_words": 2}
    folder = _mixed_folder(tmp_path / "c")
    whole_tally = Tally()
    whole, states = [], [(START, 0, 0, 0)]
    for position, document in source(folder, **options).documents(whole_tally):
        whole.append((position, document))
        states.append((position, whole_tally.short, whole_tally.n_bad, whole_tally.n_bytes))
    assert (whole_tally.n_bad, whole_tally.short) == (10, 2)
    assert len(whole) == 15
    for number, (position, short, n_bad, n_bytes) in enumerate(states):
        tally = Tally(short, n_bad, whole_tally.bad[:n_bad], n_bytes)
        assert list(source(folder, **options).documents(tally, position)) == whole[number:]
        assert tally == whole_tally
    assert list(source(folder, **options).documents(tally, END)) == []
    assert tally == whole_tally


def test_the_meter_comes_to_all_bytes_on_disk(tmp_path: Path) -> None:
    """An uncompressed file counted as nothing once it was read."""
    folder = _mixed_folder(tmp_path / "c")
    total = sum(path.stat().st_size for path in folder.iterdir())
    reading = source(folder, on_bad_record="skip")
    for start in (START, (1, 3), (3, 0)):
        meter = reading.meter()
        seen = [0]
        for _ in reading.documents(Tally(), start, meter):
            seen.append(meter.done)
        assert (meter.done, meter.total) == (total, total)
        assert seen == sorted(seen)
        assert seen[1] > 0


def test_identity_is_of_names_contents_and_choices_not_of_places(tmp_path: Path) -> None:
    one = source(_mixed_folder(tmp_path / "one")).identity()
    assert source(_mixed_folder(tmp_path / "two")).identity() == one
    (tmp_path / "two" / "d.jsonl").rename(tmp_path / "two" / "dd.jsonl")
    assert source(tmp_path / "two").identity() == one, "the same contents in the same order"
    (tmp_path / "two" / "c.txt").rename(tmp_path / "two" / "cc.txt")
    changed = {source(tmp_path / "two").identity()}
    assert changed != {one}, "a group by its name"
    for options in ({"text_field": "body"}, {"part": "1/2"}, {"max_mb": 1.0}, {"min_words": 1}, {"remove_urls": True}):
        changed.add(source(tmp_path / "one", **options).identity())
    assert len(changed | {one}) == 7
    assert source(tmp_path / "one", val_fraction=0.99).identity() == one
    by_itself = write(tmp_path / "three" / "a.txt", "text")
    assert source(by_itself).identity() != source(by_itself.parent).identity(), "cut into pieces, and not"
    renamed = write(tmp_path / "four" / "b.txt", "text")
    assert source(by_itself).identity() == source(renamed, text_field="body").identity(), (
        "it has neither name nor field"
    )


def test_an_empty_file_among_others_is_a_bad_record(tmp_path: Path) -> None:
    write(tmp_path / "f" / "a.txt", "some text\n")
    write(tmp_path / "f" / "b.txt", "")
    assert "b.txt is empty" in refusal(tmp_path / "f")
    tally = Tally()
    reading = source(tmp_path / "f", on_bad_record="skip")
    assert [document.text for _, document in reading.documents(tally)] == ["some text\n"]
    assert tally.n_bad == 1


def test_a_file_that_changes_while_it_is_hashed_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.txt", "some text\n" * 9)
    reading = source(path)
    honest = local.file_digest

    def changing(file: Path, cache: Path) -> str:
        digest = honest(file, cache)
        file.write_text("other text, behind the hash's back")
        return digest

    monkeypatch.setattr(local, "file_digest", changing)
    reading.identity()
    with pytest.raises(DataError, match="changed while it was being read"):
        reading.check_unchanged()


def test_large_rows_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def rows(n: int, size: int) -> int:
        pq.write_table(pa.table({"text": [f"{i}" + "x" * size for i in range(n)]}), tmp_path / "a.parquet")
        return tables._rows_per_batch(pq.read_metadata(tmp_path / "a.parquet"))

    assert rows(2000, 10) == 1024
    assert 10 <= rows(50, 1_000_000) <= 17
    assert rows(1, 40_000_000) == 1
