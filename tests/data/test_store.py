"""Tokenised documents on disk: whole or absent, the same however often writing was cut short, damage noticed."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from colakit.data.store import DocumentStore, Facts, PartState, StoreWriter, is_complete
from colakit.errors import DataError

PARTS = [[[3, 4, 5], [], [6]], [[7, 8]], [[9], [10, 11, 12, 13]]]


def state(number: int) -> PartState:
    return PartState((number, 7), number, 2 * number, tuple(f"bad {i}" for i in range(number)), 100 * number)


def facts(first: int, n: int) -> Facts:
    numbers = np.arange(first, first + n)
    return Facts(numbers.astype(np.uint64) + np.uint64(2**63), numbers.astype(np.uint64), 10 * numbers)


def write_part(writer: StoreWriter, number: int, *, factor: int = 1) -> None:
    first = sum(len(part) for part in PARTS[:number])
    tokens = [np.array(ids, np.uint32) * np.uint32(factor) for ids in PARTS[number]]
    writer.write(tokens, facts(first, len(tokens)), state(number + 1))


def write_store(folder: Path, *, n_ids: int = 300, factor: int = 1) -> DocumentStore:
    writer = StoreWriter(folder, n_ids)
    for number in range(writer.n_parts, len(PARTS)):
        write_part(writer, number, factor=factor)
    writer.finish(state(4))
    return DocumentStore(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("n_ids", "factor", "kind"), [(2**16, 5000, "uint16"), (2**16 + 1, 5042, "uint32")])
def test_every_token_and_fact_comes_back(tmp_path: Path, n_ids: int, factor: int, kind: str) -> None:
    store = write_store(tmp_path / "s", n_ids=n_ids, factor=factor)
    flat = [token * factor for part in PARTS for ids in part for token in ids]
    assert store.lengths.tolist() == [len(ids) for part in PARTS for ids in part] == [3, 0, 1, 2, 1, 4]
    assert store.starts.tolist() == [0, 3, 3, 4, 6, 7, 11]
    for start in range(len(flat) + 1):
        for stop in range(start, len(flat) + 1):
            found = store.read(start, stop)
            assert found.dtype == np.int32
            assert found.tolist() == flat[start:stop]
    for known, expected in zip(store.facts, facts(0, 6), strict=True):
        assert known.dtype == expected.dtype
        assert known.tolist() == expected.tolist()
    assert (len(store), store.short, store.n_bad, store.bad) == (6, 4, 8, state(4).bad)
    assert kind in str(StoreWriter(tmp_path / "other", n_ids)._dtype)


def test_a_store_without_documents(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "s", 300)
    writer.finish(state(2))
    store = DocumentStore(tmp_path / "s")
    assert (len(store), store.n_bad, store.read(0, 0).tolist(), len(store.facts.groups)) == (0, 4, [], 0)


@pytest.mark.parametrize("finished", [0, 1, 2, 3])
def test_a_second_writer_goes_on_behind_the_finished_parts(tmp_path: Path, finished: int) -> None:
    write_store(tmp_path / "whole")
    writer = StoreWriter(tmp_path / "s", 300)
    for number in range(finished):
        write_part(writer, number)
    assert not is_complete(tmp_path / "s")
    again = StoreWriter(tmp_path / "s", 300)
    assert (again.n_parts, again.state) == (finished, state(finished) if finished else None)
    write_store(tmp_path / "s")
    assert content(tmp_path / "s") == content(tmp_path / "whole")
    assert is_complete(tmp_path / "s")


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_nothing_that_would_be_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    import pyarrow as pa

    writer = StoreWriter(tmp_path / "s", 300)
    write_part(writer, 0)
    before = content(tmp_path / "s")

    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        owner = {"write": pa.ipc.RecordBatchStreamWriter, "fsync": os, "replace": Path}[call]
        patch.setattr(owner, "write_table" if call == "write" else call, refuse)
        with pytest.raises(OSError, match="No space left"):
            write_part(writer, 1)
        if call != "write":
            with pytest.raises(OSError, match="No space left"):
                writer.finish(state(1))
    assert content(tmp_path / "s") == before
    assert (writer.n_parts, writer.state) == (1, state(1)), "the writer knows that there is one part still"
    write_store(tmp_path / "s")


def test_leftovers_of_a_kill_are_no_parts_and_go_a_day_later(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "s", 300)
    left = tmp_path / "s" / ".part-00000.arrow.99"
    left.write_bytes(b"half")
    assert StoreWriter(tmp_path / "s", 300).n_parts == 0
    assert left.exists(), "it might belong to a process at work"
    os.utime(left, (time.time() - 2 * 24 * 3600,) * 2)
    assert StoreWriter(tmp_path / "s", 300).n_parts == writer.n_parts == 0
    assert not left.exists()


# --- damage


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _nothing_left(path: Path) -> None:
    path.write_bytes(b"")


def _overwrite(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [_truncate, _nothing_left, _overwrite, Path.unlink])
@pytest.mark.parametrize("name", ["part-00000.arrow", "part-00002.arrow", "done.json"])
def test_a_damaged_store_names_the_folder_to_remove(tmp_path: Path, name: str, damage: object) -> None:
    write_store(tmp_path / "s")
    damage(tmp_path / "s" / name)  # type: ignore[operator]  # one of the above
    with pytest.raises(DataError, match=rf"{tmp_path}/s is damaged \(.*\)\. Remove it; it will be made anew"):
        DocumentStore(tmp_path / "s")


@pytest.mark.parametrize("done", ["[]", "{}", '{"short": 0, "n_bad": 0, "bad": 3, "parts": [1]}', '"x"', "null"])
def test_a_done_file_of_something_else(tmp_path: Path, done: str) -> None:
    write_store(tmp_path / "s")
    (tmp_path / "s" / "done.json").write_text(done)
    with pytest.raises(DataError, match="is damaged"):
        DocumentStore(tmp_path / "s")


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Sizes are the same, and any bits are tokens."""
    write_store(tmp_path / "s")
    for path in sorted((tmp_path / "s").glob("part-*")):
        whole = path.read_bytes()
        for place in range(0, len(whole), 41):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with pytest.raises(DataError, match="is damaged"):
                DocumentStore(tmp_path / "s")
        path.write_bytes(whole)


@pytest.mark.parametrize("damage", [_truncate, _nothing_left, _overwrite])
def test_going_on_behind_a_damaged_part(tmp_path: Path, damage: object) -> None:
    writer = StoreWriter(tmp_path / "s", 300)
    write_part(writer, 0)
    write_part(writer, 1)
    damage(tmp_path / "s" / "part-00000.arrow")  # type: ignore[operator]  # one of the above
    with pytest.raises(DataError, match=rf"damaged.*Remove ({tmp_path}/s|it); it will be made anew"):
        write_store(tmp_path / "s")


def test_a_flipped_bit_of_a_part_that_is_gone_on_behind_is_noticed(tmp_path: Path) -> None:
    """Also in what it says of the position: documents would be read twice, or not at all."""
    writer = StoreWriter(tmp_path / "s", 300)
    write_part(writer, 0)
    write_part(writer, 1)
    path = tmp_path / "s" / "part-00001.arrow"
    whole, state = path.read_bytes(), StoreWriter(tmp_path / "s", 300).state
    n_noticed = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert StoreWriter(tmp_path / "s", 300).state == state  # a byte that nothing reads
        except DataError:
            n_noticed += 1
    assert n_noticed > len(whole) // 4


def test_the_borders_of_documents_are_part_of_what_was_written(tmp_path: Path) -> None:
    """The same tokens in other documents, and all else as it was."""
    one, other = StoreWriter(tmp_path / "one", 300), StoreWriter(tmp_path / "other", 300)
    for writer, lengths in ((one, (3, 5)), (other, (4, 4))):
        ids = np.arange(8, dtype=np.uint32)
        writer.write([ids[: lengths[0]], ids[lengths[0] :]], facts(0, 2), state(1))
    paths = [tmp_path / name / "part-00000.arrow" for name in ("one", "other")]
    tables = [pyarrow.ipc.open_stream(path.read_bytes()).read_all() for path in paths]
    forged = tables[1].replace_schema_metadata(tables[0].schema.metadata)
    with pyarrow.OSFile(str(paths[0]), "wb") as file, pyarrow.ipc.new_stream(file, forged.schema) as stream:
        stream.write_table(forged)
    with pytest.raises(DataError, match="it is not what was written"):
        StoreWriter(tmp_path / "one", 300)


def test_a_part_cut_anywhere_is_never_taken_for_whole(tmp_path: Path) -> None:
    """Arrow streams may end without an end: cut between two of its messages, one looked whole, without its rows."""
    writer = StoreWriter(tmp_path / "s", 300)
    for number in range(3):
        write_part(writer, number)
    path = tmp_path / "s" / "part-00001.arrow"
    whole = path.read_bytes()
    for size in range(0, len(whole) - 8, 8):
        path.write_bytes(whole[:size])  # all but the mark of its end, behind which there is nothing
        with pytest.raises(DataError, match="damaged"):
            write_store(tmp_path / "s")
        (tmp_path / "s" / "done.json").unlink(missing_ok=True)


def test_the_done_file_is_json_with_digests(tmp_path: Path) -> None:
    write_store(tmp_path / "s")
    done = json.loads((tmp_path / "s" / "done.json").read_text())
    assert done["n_bytes"] == 400
    assert len(set(done["parts"])) == 3
