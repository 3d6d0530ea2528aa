"""The prepared data: cached once whole, keyed by everything it depends on, held-out text kept out of training."""

import json
import logging
import multiprocessing
import os
import pwd
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from colakit.config.schema import DataConfig
from colakit.data import prepare as prepare_module
from colakit.data.blocks import Blocks
from colakit.data.cache import cache_root, cached_folder
from colakit.data.document import Document
from colakit.data.prepare import PreparedData, check_sources, prepare
from colakit.data.sources import Documents
from colakit.data.tokenizer import Tokenizer
from colakit.errors import ConfigError, DataError

WORDS = ["alpha", "beta", "gamma", "delta", "eins", "zwei", "drei", "naïve", "1234", "<|endoftext|>"]


def texts(n: int = 40) -> list[str]:
    return [f"document {i}: " + " ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(50)) for i in range(n)]


def corpus(folder: Path, documents: list[str] | None = None) -> DataConfig:
    folder.mkdir(exist_ok=True)
    rows = "".join(json.dumps({"text": text}) + "\n" for text in documents or texts())
    (folder / "a.jsonl").write_text(rows)
    cache = folder.parent / "cache"
    return DataConfig(source="files", path=str(folder / "a.jsonl"), val_fraction=0.1, cache_dir=str(cache))


def run(config: DataConfig, *, seq_len: int = 16, vocab_size: int = 300) -> PreparedData:
    return prepare(config, seq_len=seq_len, vocab_size=vocab_size)


def stream(blocks: Blocks) -> list[int]:
    joined = [int(blocks[0][0]), *np.concatenate([blocks[i][1:] for i in range(len(blocks))]).tolist()]
    return [token for token in joined if token >= 0]


def documents_of(data: PreparedData, blocks: Blocks) -> list[str]:
    found: list[list[int]] = [[]]
    for token in stream(blocks):
        if token == data.tokenizer.eot_id:
            found.append([])
        else:
            found[-1].append(token)
    assert found.pop() == []
    return [data.tokenizer.decode(ids) for ids in found]


def test_the_blocks_hold_every_document_once_in_order(tmp_path: Path) -> None:
    data = run(corpus(tmp_path / "c"))
    train, held_out = documents_of(data, data.train), documents_of(data, data.held_out)
    assert sorted(train + held_out) == sorted(texts())
    assert train == [text for text in texts() if text in set(train)]
    assert (data.documents, data.held_out_documents) == (len(train), len(held_out))
    assert data.held_out_documents >= 1
    assert data.text_bytes == sum(len(text.encode()) for text in texts())
    assert (data.train_tokens, data.held_out_tokens) == (len(stream(data.train)), len(stream(data.held_out)))
    assert held_out[0].startswith(data.prompt_text)
    assert len(data.prompt_text) > 20
    short = corpus(tmp_path / "short", [f"{i}" for i in range(40)])
    assert run(short, seq_len=16).prompt_text in {str(i) for i in range(40)}, "it ends with its document"
    assert data.train[0].shape == (17,)
    assert data.train[0].dtype == np.int32
    with pytest.raises(IndexError):
        data.train[len(data.train)]
    assert json.loads(json.dumps(data.describe()))["fingerprint"] == data.fingerprint


def test_a_prompt_does_not_end_inside_a_character(tmp_path: Path) -> None:
    config = corpus(tmp_path / "c", [f"{i:03}" + "é" * 50 for i in range(9)])
    data = run(config, seq_len=80, vocab_size=257)  # a token is a byte, so the 64th is half an é
    assert data.prompt_text[3:] == "é" * 30


def test_a_second_call_neither_trains_nor_tokenises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = corpus(tmp_path / "c")
    first = run(config)

    def refuse(*_args: object) -> None:
        raise AssertionError("the cache was not used")

    caplog.set_level(logging.INFO, "colakit")
    monkeypatch.setattr(Tokenizer, "encode_batch", refuse)
    monkeypatch.setattr(prepare_module, "train_bpe", refuse)
    second = run(config)
    assert second.describe() == first.describe()
    assert second.prompt_text == first.prompt_text
    assert stream(second.train) == stream(first.train)
    assert not caplog.records
    with pytest.raises(AssertionError, match="the cache was not used"):
        run(config, seq_len=17)


def test_work_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "colakit")
    config = corpus(tmp_path / "c", [f"{i:03} " + "x" * 96 for i in range(20)])
    run(config)
    run(config, seq_len=17)
    assert [record.getMessage() for record in caplog.records] == [
        "Preparing data: training a tokenizer of 300 tokens on 20 documents, 2kB of text …",
        "Preparing data: tokenising 20 documents, 2kB of text …",
        "Preparing data: tokenising 20 documents, 2kB of text …",
    ]


def test_the_fingerprint_knows_what_the_blocks_depend_on_and_nothing_else(tmp_path: Path) -> None:
    base = corpus(tmp_path / "c")
    first = run(base)
    run(base).tokenizer.save(tmp_path / "tokenizer")
    same = corpus(tmp_path / "elsewhere")
    assert run(same).fingerprint == first.fingerprint
    by_path = same.model_copy(update={"tokenizer": str(tmp_path / "tokenizer")})
    assert run(by_path, vocab_size=999).fingerprint == first.fingerprint
    others = {
        run(corpus(tmp_path / "text", [*texts()[:-1], "another text"])).fingerprint,
        run(base, seq_len=17).fingerprint,
        run(base, vocab_size=299).fingerprint,
        run(base.model_copy(update={"val_fraction": 0.5})).fingerprint,
    }
    assert len(others | {first.fingerprint}) == 5


def test_held_out_text_does_not_shape_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    train_bpe = prepare_module.train_bpe
    monkeypatch.setattr(prepare_module, "train_bpe", lambda it, n: train_bpe(seen.extend(t := list(it)) or t, n))
    data = run(corpus(tmp_path / "c"))
    assert seen == documents_of(data, data.train)
    assert set(seen).isdisjoint(documents_of(data, data.held_out))


def test_a_held_out_copy_under_another_name_is_not_trained_on(tmp_path: Path) -> None:
    rows = [{"text": text, "id": f"book{i}#0"} for i, text in enumerate(texts())]
    rows += [{"text": text, "id": f"copy{i}#0"} for i, text in enumerate(texts())]
    config = corpus(tmp_path / "c")
    Path(config.path or "").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = run(config)
    assert data.dropped_documents > 0
    assert set(documents_of(data, data.train)).isdisjoint(documents_of(data, data.held_out))
    assert data.describe()["dropped_documents"] == data.dropped_documents


def test_cleaning_shapes_the_blocks_and_their_fingerprint(tmp_path: Path) -> None:
    words = [f"the {i} quick brown fox at www.fox{i}.example jumps" for i in range(30)]
    config = corpus(tmp_path / "c", [*words, *(f"short {i}" for i in range(5))])
    plain = run(config)
    cleaned = run(config.model_copy(update={"remove_urls": True, "min_words": 3}))
    assert (plain.short_documents, cleaned.short_documents) == (0, 5)
    assert plain.fingerprint != cleaned.fingerprint
    both = documents_of(cleaned, cleaned.train) + documents_of(cleaned, cleaned.held_out)
    assert sorted(both) == sorted(f"the {i} quick brown fox at  jumps" for i in range(30))
    assert cleaned.describe()["short_documents"] == 5
    again = run(config.model_copy(update={"remove_urls": True, "min_words": 3}))
    assert (again.fingerprint, again.short_documents) == (cleaned.fingerprint, 5)


# --- refusals


@pytest.mark.parametrize("tokenizer_is_cached", [False, True])
def test_a_source_that_changes_while_it_is_read_poisons_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer_is_cached: bool
) -> None:
    """Between hashing and packing an edited document could change sides, under the old fingerprint and for good."""
    config = corpus(tmp_path / "c")
    if tokenizer_is_cached:
        run(config, seq_len=8)
    honest, passes = Documents.__iter__, iter(range(99))

    def edited_after_the_first_pass(source: Documents) -> Iterator[Document]:
        changed = next(passes) > 0
        for i, document in enumerate(honest(source)):
            yield Document(document.text + "!") if changed and i == 7 else document

    monkeypatch.setattr(Documents, "__iter__", edited_after_the_first_pass)
    with pytest.raises(DataError, match="changed while it was being read"):
        run(config)
    monkeypatch.setattr(Documents, "__iter__", honest)
    data = run(config)
    assert sorted(documents_of(data, data.train) + documents_of(data, data.held_out)) == sorted(texts())


def test_a_model_with_too_few_rows_is_told_how_many_it_needs(tmp_path: Path) -> None:
    config = corpus(tmp_path / "c")
    with pytest.raises(ConfigError, match=r"model\.vocab_size = 100.*needs 257 rows"):
        run(config, vocab_size=100)
    run(config).tokenizer.save(tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match=r"--set model\.vocab_size=300"):
        run(config.model_copy(update={"tokenizer": str(tmp_path / "tokenizer")}), vocab_size=299)


def test_a_tiny_file_is_told_what_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "tiny.txt"
    config = DataConfig(source="files", path=str(path), cache_dir=str(tmp_path / "cache"))
    path.write_text("hello\n")
    with pytest.raises(
        DataError, match=r"tiny\.txt holds too little text to hold some out: give a \.txt longer than 32"
    ):
        run(config)
    for text in ("".join(f"{i} " for i in range(9000)), "".join(f"line {i} of many\n" for i in range(2000))):
        path.write_text(text[: 32 * 1024 + 1])
        assert run(config).held_out_documents == 1


def test_a_large_and_a_small_file_are_held_out_in_proportion(tmp_path: Path) -> None:
    """The small one's hash decided between the two: 98.7 % of the text were held out where 1 % was asked for."""
    for name in range(12):
        folder = tmp_path / str(name)
        folder.mkdir()
        (folder / f"a{name}.txt").write_text("".join(f"{i} words in a line\n" for i in range(4500)))
        (folder / f"b{name}.txt").write_text("".join(f"{i} other lines\n" for i in range(200)))
        data = run(DataConfig(source="files", path=str(folder), cache_dir=str(tmp_path / "cache")))
        assert data.held_out_tokens < 0.2 * data.train_tokens


def test_text_that_does_not_fill_a_sequence_is_refused(tmp_path: Path) -> None:
    config = corpus(tmp_path / "c", ["a", "b", "c"])
    with pytest.raises(DataError, match=r"has 4 tokens, but one sequence takes 5 .*Lower model\.seq_len"):
        run(config, seq_len=4)
    assert len(run(config, seq_len=3).train) == 1


def test_the_check_before_a_run(tmp_path: Path) -> None:
    config = corpus(tmp_path / "c")
    check_sources(config)
    check_sources(config.model_copy(update={"tokenizer": "HuggingFaceTB/SmolLM2-135M"}))
    with pytest.raises(DataError, match=r"data\.tokenizer"):
        check_sources(config.model_copy(update={"tokenizer": str(tmp_path / "none")}))
    with pytest.raises(DataError, match=r"data\.path"):
        check_sources(config.model_copy(update={"path": str(tmp_path / "none")}))


# --- the cache


def test_a_write_cut_short_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = corpus(tmp_path / "c")
    write_blocks = prepare_module.write_blocks

    def interrupted(path: Path, *args: object) -> None:
        if path.name == "held_out.arrow":
            raise KeyboardInterrupt
        write_blocks(path, *args)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(prepare_module, "write_blocks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert list((cache_root(config) / "blocks").iterdir()) == []
    monkeypatch.setattr(prepare_module, "write_blocks", write_blocks)
    assert len(run(config).held_out) > 0


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


def test_a_cache_that_cannot_be_written_or_read_says_so(tmp_path: Path) -> None:
    config = corpus(tmp_path / "c")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be read or written.*--set data\.cache_dir=PATH"):
        run(config.model_copy(update={"cache_dir": str(tmp_path / "file")}))
    data = run(config)
    path = cache_root(config) / "blocks" / data.fingerprint / "train.arrow"
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"train\.arrow is damaged .*Remove .*it will be made anew"):
        run(config)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root(DataConfig()) == Path("/home/me/.cache/colakit")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert cache_root(DataConfig()) == Path("/scratch/colakit")
    assert cache_root(DataConfig(cache_dir="~/mine")) == Path("/home/me/mine")


def test_a_cache_in_a_place_that_is_not_ours(
    tmp_path: Path, lock: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = corpus(tmp_path / "c")
    (tmp_path / "locked").mkdir()
    lock(tmp_path / "locked")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "locked"))
    for cache_dir, reason in (
        (str(tmp_path / "locked" / "x"), "Permission denied"),
        (None, "Permission denied"),
        ("x" * 5000, "File name too long"),
    ):
        with pytest.raises(DataError, match=rf"cannot be read or written: {reason}.*--set data\.cache_dir=PATH"):
            run(config.model_copy(update={"cache_dir": cache_dir}))


def test_without_a_home_folder_a_place_for_the_cache_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: {}[0])  # a user without an entry, as containers have
    with pytest.raises(DataError, match=r"that home folder is not known\. Set HOME, .*--set data\.cache_dir=PATH"):
        cache_root(DataConfig())


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(corpus(tmp_path / "c"))
    assert capfd.readouterr() == ("", "")
