"""The prepared data: cached once whole, keyed by everything it depends on, held-out text kept out of training."""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from colakit.config.schema import DataConfig, SourceConfig
from colakit.data import own_bpe as own_bpe_module
from colakit.data import prepare as prepare_module
from colakit.data.cache import cache_root
from colakit.data.packing import Blocks
from colakit.data.prepare import PreparedData, check_sources, prepare
from colakit.data.sources import Source
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


def train(data: PreparedData) -> Blocks:
    (source,) = data.sources
    return source.train


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
    trained, held_out = documents_of(data, train(data)), documents_of(data, data.held_out)
    assert sorted(trained + held_out) == sorted(texts())
    assert trained == [text for text in texts() if text in set(trained)]
    counts = data.describe()
    assert (counts["documents"], counts["held_out_documents"]) == (len(trained), len(held_out))
    assert counts["held_out_documents"] >= 1
    assert counts["text_bytes"] == sum(len(text.encode()) for text in texts())
    assert (counts["train_tokens"], counts["held_out_tokens"]) == (len(stream(train(data))), len(stream(data.held_out)))
    assert (counts["train_blocks"], counts["held_out_blocks"]) == (len(train(data)), len(data.held_out))
    assert held_out[0].startswith(data.prompt_text)
    assert len(data.prompt_text) > 20
    short = corpus(tmp_path / "short", [f"{i}" for i in range(40)])
    assert run(short, seq_len=16).prompt_text in {str(i) for i in range(40)}, "it ends with its document"
    assert train(data)[0].shape == (17,)
    assert train(data)[0].dtype == np.int32
    with pytest.raises(IndexError):
        train(data)[len(train(data))]
    assert json.loads(json.dumps(data.describe()))["fingerprint"] == data.fingerprint


def test_a_prompt_does_not_end_inside_a_character(tmp_path: Path) -> None:
    config = corpus(tmp_path / "c", [f"{i:03}" + "é" * 50 for i in range(20)])
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
    monkeypatch.setattr(Tokenizer, "encodings", refuse)
    monkeypatch.setattr(own_bpe_module, "train_bpe", refuse)
    second = run(config)
    assert second.describe() == first.describe()
    assert second.prompt_text == first.prompt_text
    assert stream(train(second)) == stream(train(first))
    assert not caplog.records
    assert run(config, seq_len=17).train != first.train, "packing is arithmetic over the same tokens"
    with pytest.raises(AssertionError, match="the cache was not used"):
        run(config.model_copy(update={"min_words": 1}))


def test_work_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "colakit")
    config = corpus(tmp_path / "c", [f"{i:03} " + "x" * 96 for i in range(20)])
    run(config)
    run(config, seq_len=17)
    first, fewer, second, third = (record.getMessage() for record in caplog.records)
    n_train = run(config).describe()["documents"]
    assert n_train < 20
    text = f"on the {n_train} training documents, {n_train / 10:.2g}kB of text …"
    assert first == f"Preparing data: training a tokenizer of 300 tokens {text}"
    n_tokens = run(config).tokenizer.n_tokens
    advice = f"To leave none over: --set model.vocab_size={n_tokens}."
    assert fewer == f"The text has only {n_tokens} tokens to learn, and the model 300 rows for them. {advice}"
    assert second == f"Preparing data: tokenising {config.path} …"
    assert re.fullmatch(rf"Prepared {re.escape(str(config.path))} in \d+\.\d s\.", third)


def test_the_fingerprint_knows_what_the_blocks_depend_on_and_nothing_else(tmp_path: Path) -> None:
    base = corpus(tmp_path / "c").model_copy(update={"val_fraction": 0.2})
    first = run(base)
    run(base).tokenizer.save(tmp_path / "tokenizer")
    same = base.model_copy(update={"path": corpus(tmp_path / "elsewhere").path})
    assert run(same).fingerprint == first.fingerprint
    by_path = same.model_copy(update={"tokenizer": str(tmp_path / "tokenizer")})
    assert run(by_path, vocab_size=999).fingerprint == first.fingerprint
    changes: list[dict[str, object]] = [
        {"val_fraction": 0.5},
        {"packing": "pad"},
        {"remove_urls": True},
        {"remove_crawl_markers": True},
        {"min_words": 2},
        {"max_mb": 0.005},
        {"part": "1/2"},
        {"max_document_mb": 1.0},
    ]
    other = corpus(tmp_path / "text", [*texts()[:-1], "another text"])
    others = {
        run(base.model_copy(update={"path": other.path})).fingerprint,
        run(base, seq_len=17).fingerprint,
        run(base, vocab_size=299).fingerprint,
        *(run(base.model_copy(update=change)).fingerprint for change in changes),
    }
    assert len(others | {first.fingerprint}) == 4 + len(changes)
    elsewhere = base.model_copy(update={"cache_dir": str(tmp_path / "another cache")})
    assert run(elsewhere).fingerprint == first.fingerprint
    together = base.model_copy(update={"attend_across_documents": False})
    assert run(together).fingerprint == first.fingerprint, "a mask is no block"


def test_held_out_text_does_not_shape_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    train_bpe = own_bpe_module.train_bpe
    monkeypatch.setattr(own_bpe_module, "train_bpe", lambda it, n: train_bpe(seen.extend(t := list(it)) or t, n))
    data = run(corpus(tmp_path / "c"))
    assert seen == documents_of(data, train(data))
    assert set(seen).isdisjoint(documents_of(data, data.held_out))


def test_a_held_out_copy_under_another_name_is_not_trained_on(tmp_path: Path) -> None:
    rows = [{"text": text, "id": f"book{i}#0"} for i, text in enumerate(texts())]
    rows += [{"text": text, "id": f"copy{i}#0"} for i, text in enumerate(texts())]
    config = corpus(tmp_path / "c")
    Path(config.path or "").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = run(config)
    assert set(documents_of(data, train(data))).isdisjoint(documents_of(data, data.held_out))
    counts = data.describe()
    assert counts["dropped_documents"] == counts["held_out_documents"] > 0


def test_cleaning_shapes_the_blocks_and_their_fingerprint(tmp_path: Path) -> None:
    words = [f"the {i} quick brown fox at www.fox{i}.example jumps" for i in range(30)]
    config = corpus(tmp_path / "c", [*words, *(f"short {i}" for i in range(5))])
    plain = run(config)
    cleaned = run(config.model_copy(update={"remove_urls": True, "min_words": 3}))
    assert (plain.describe()["short_documents"], cleaned.describe()["short_documents"]) == (0, 5)
    assert plain.fingerprint != cleaned.fingerprint
    both = documents_of(cleaned, train(cleaned)) + documents_of(cleaned, cleaned.held_out)
    assert sorted(both) == sorted(f"the {i} quick brown fox at  jumps" for i in range(30))
    again = run(config.model_copy(update={"remove_urls": True, "min_words": 3}))
    assert again.describe() == cleaned.describe()


# --- refusals


@pytest.mark.parametrize("moment", ["before the trainer's second pass", "before tokenising"])
@pytest.mark.parametrize("edit", ["same size", "white space", "shorter", "removed", "older time"])
def test_a_source_that_changes_while_it_is_read_poisons_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, edit: str
) -> None:
    """Else an edited document would change tokens or sides, under the old fingerprint and for good."""
    config = corpus(tmp_path / "c")
    path, before = Path(config.path or ""), Path(config.path or "").stat()
    content = path.read_bytes()

    def change() -> None:
        if edit == "removed":
            path.unlink()
            return
        edited = content.replace(b" zwei", b"  zwei" if edit == "white space" else b" ZWEI")
        path.write_bytes(content[: content.index(b"\n") + 1] if edit == "shorter" else edited)
        if edit == "older time":  # as `cp --preserve` gives
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    honest, passes = Source.documents, iter(range(99))
    changes_at = 2 if moment == "before tokenising" else 1

    def documents(source: Source, *args: object) -> object:
        if next(passes) == changes_at:
            change()
        return honest(source, *args)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(Source, "documents", documents)
    with pytest.raises(
        DataError, match=r"changed while it was being read\. Wait|a\.jsonl cannot be read: No such file"
    ):
        run(config)
    monkeypatch.setattr(Source, "documents", honest)
    path.write_bytes(content)
    data = run(config)
    assert sorted(documents_of(data, train(data)) + documents_of(data, data.held_out)) == sorted(texts())
    clean = run(config.model_copy(update={"cache_dir": str(tmp_path / "clean")}))
    assert data.tokenizer.fingerprint == clean.tokenizer.fingerprint


def test_a_file_that_appears_meanwhile_waits_for_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was read under the fingerprint of the folder without it."""
    config = corpus(tmp_path / "c").model_copy(update={"path": str(tmp_path / "c")})
    train_bpe = own_bpe_module.train_bpe

    def adding(*args: object) -> Tokenizer:
        (tmp_path / "c" / "b.jsonl").write_text(json.dumps({"text": "late"}) + "\n")
        return train_bpe(*args)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(own_bpe_module, "train_bpe", adding)
    first = run(config)
    assert sorted(documents_of(first, train(first)) + documents_of(first, first.held_out)) == sorted(texts())
    monkeypatch.setattr(own_bpe_module, "train_bpe", train_bpe)
    second = run(config)
    assert second.fingerprint != first.fingerprint
    assert "late" in documents_of(second, train(second)) + documents_of(second, second.held_out)


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
    with pytest.raises(DataError, match=r"tiny\.txt is one group of documents, .* a single \.txt of more than 32 KiB"):
        run(config)
    for text in ("".join(f"{i} " for i in range(9000)), "".join(f"line {i} of many\n" for i in range(2000))):
        path.write_text(text[: 32 * 1024 + 1])
        assert run(config).describe()["held_out_documents"] == 1


def test_a_txt_that_grows_keeps_held_out_what_was_held_out(tmp_path: Path) -> None:
    """Its last piece grows too, and stays on its side."""
    path = tmp_path / "log.txt"
    lines = [f"line {i} of a log that is never complete\n" for i in range(40_000)]
    config = DataConfig(source="files", path=str(path), cache_dir=str(tmp_path / "cache"), val_fraction=0.05)
    config = config.model_copy(update={"tokenizer": str(tmp_path / "tokenizer")})
    own_bpe_module.train_bpe(lines[:99], 300).save(tmp_path / "tokenizer")
    held: list[set[str]] = []
    for n_lines in (2_000, 3_000, 3_001, 20_000, 40_000):
        path.write_text("".join(lines[:n_lines]))
        data = run(config)
        held.append({line for text in documents_of(data, data.held_out) for line in text.splitlines()})
        trained = {line for text in documents_of(data, train(data)) for line in text.splitlines()}
        assert len(held[-1] | trained) == n_lines == len(held[-1]) + len(trained)
        assert len(held) == 1 or held[-2] <= held[-1]
    assert 0.03 < len(held[-1]) / len(lines) < 0.07


def test_text_that_does_not_fill_a_sequence_is_refused(tmp_path: Path) -> None:
    config = corpus(tmp_path / "c", ["a", "b", "c"]).model_copy(update={"val_fraction": 0.22})
    with pytest.raises(DataError, match=r"has 4 tokens, but one sequence takes 5 .*Lower model\.seq_len"):
        run(config, seq_len=4)
    assert len(train(run(config, seq_len=3))) == 1


def test_the_check_before_a_run(tmp_path: Path) -> None:
    config = corpus(tmp_path / "c")
    check_sources(config)
    check_sources(config.model_copy(update={"tokenizer": "HuggingFaceTB/SmolLM2-135M"}))
    with pytest.raises(DataError, match=r"data\.tokenizer"):
        check_sources(config.model_copy(update={"tokenizer": str(tmp_path / "none")}))
    with pytest.raises(DataError, match=r"data\.path"):
        check_sources(config.model_copy(update={"path": str(tmp_path / "none")}))


# --- the cache


def test_a_cache_that_cannot_be_written_or_read_says_so(tmp_path: Path) -> None:
    config = corpus(tmp_path / "c")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be read or written.*--set data\.cache_dir=PATH"):
        run(config.model_copy(update={"cache_dir": str(tmp_path / "file")}))
    run(config)
    (folder,) = (cache_root(config) / "tokens").iterdir()
    (folder / "part-00000.arrow").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=rf"{folder} is damaged .*Remove it; it will be made anew"):
        run(config)
    shutil.rmtree(folder)
    assert len(run(config).held_out) > 0


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


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(corpus(tmp_path / "c"))
    assert capfd.readouterr() == ("", "")


# --- several sources


def test_what_one_source_holds_out_no_source_trains_on(tmp_path: Path) -> None:
    one, other = corpus(tmp_path / "one"), corpus(tmp_path / "other", [*texts(), *(f"extra {i}" for i in range(40))])
    sources = {name: SourceConfig(source="files", path=c.path) for name, c in (("one", one), ("other", other))}
    config = one.model_copy(update={"path": None, "source": "stdlib", "sources": sources})
    data = run(config)
    held_out = set(documents_of(data, data.held_out))
    assert held_out
    for blocks in data.train.values():
        assert held_out.isdisjoint(documents_of(data, blocks))
    counts = data.describe()
    assert counts["sources"]["other"]["documents"] + counts["sources"]["other"]["held_out_documents"] == 80
    assert counts["documents"] + counts["held_out_documents"] + counts["dropped_documents"] == 120
    assert run(config.model_copy(update={"sources": dict(reversed(sources.items()))})).fingerprint != data.fingerprint


def test_parts_of_a_corpus_are_disjoint_and_all_of_it(tmp_path: Path) -> None:
    config = corpus(tmp_path / "c").model_copy(update={"val_fraction": 0.2})
    seen: list[str] = []
    for i in (1, 2, 3):
        data = run(config.model_copy(update={"part": f"{i}/3"}))
        seen += documents_of(data, data.train["data"]) + documents_of(data, data.held_out)
    assert sorted(seen) == sorted(texts())


def test_no_more_text_is_read_than_asked_for(tmp_path: Path) -> None:
    config = corpus(tmp_path / "c")
    counts = run(config.model_copy(update={"max_mb": 0.005, "val_fraction": 0.2})).describe()
    assert 5000 <= counts["text_bytes"] < 5000 + max(len(text.encode()) for text in texts())


def test_bad_records_are_counted_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = corpus(tmp_path / "c")
    path = Path(config.path or "")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"{broken\n", *lines[3:9], b'{"text": "\xff"}\n', *lines[9:]]))
    with pytest.raises(DataError, match=r"a\.jsonl, line 4: not valid JSON"):
        run(config)
    skipping = config.model_copy(update={"on_bad_record": "skip"})
    for _ in range(2):  # the second time from the cache
        data = run(skipping)
        assert data.describe()["bad_records"] == 2
        first, second = data.sources[0].store.bad
        assert "line 4: not valid JSON" in first
        assert "line 11: byte 0xff is not UTF-8" in second
        assert sorted(documents_of(data, data.train["data"]) + documents_of(data, data.held_out)) == sorted(texts())
        assert f"{path}: bad records left out: 2, the first: {first}" in caplog.text
    path.write_bytes(b"{broken\n" * 3)
    with pytest.raises(DataError, match=r"holds no record that can be read; the first of 3: .*line 1: not valid JSON"):
        run(skipping)


def test_padded_blocks_are_one_document_each(tmp_path: Path) -> None:
    data = run(corpus(tmp_path / "c").model_copy(update={"packing": "pad"}), seq_len=200)
    eot = data.tokenizer.eot_id
    blocks = data.train["data"]
    found = []
    for i in range(len(blocks)):
        block = blocks[i]
        assert block[0] == eot
        found.append(data.tokenizer.decode([int(t) for t in block[1:] if t not in (eot, -1)]))
    assert all(any(text.startswith(start) for text in texts()) for start in found)
    assert len(found) == data.describe()["documents"]
    assert data.isolate_eot is None


def test_another_held_out_share_trains_another_tokenizer_and_another_piece_size_another_store(tmp_path: Path) -> None:
    """Else a tokenizer would have seen what is held out now."""
    config = corpus(tmp_path / "c")
    run(config)
    run(config.model_copy(update={"val_fraction": 0.5}))
    folders = {name: list((tmp_path / "cache" / name).iterdir()) for name in ("tokenizers", "tokens")}
    assert len(folders["tokenizers"]) == 2
    before = set(folders["tokens"])
    run(config.model_copy(update={"max_document_mb": 1.0}))
    assert len(set((tmp_path / "cache" / "tokens").iterdir()) - before) == 1


def test_of_a_large_corpus_a_tokenizer_reads_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    honest = own_bpe_module.train_bpe

    def watched(found: Iterable[str], vocab_size: int) -> Tokenizer:
        seen.extend(found)
        return honest(seen, vocab_size)

    monkeypatch.setattr(own_bpe_module, "train_bpe", watched)
    config = corpus(tmp_path / "c", texts(200))
    data = run(config)
    assert sorted(seen) == sorted(documents_of(data, train(data))), "the training documents"
    seen.clear()
    n_bytes = sum(len(text.encode()) for text in texts(200))
    monkeypatch.setattr(own_bpe_module, "_MOST_TRAINER_BYTES", n_bytes // 4)
    run(config.model_copy(update={"cache_dir": str(tmp_path / "other")}))
    assert 0.15 * n_bytes < sum(len(text.encode()) for text in seen) < 0.35 * n_bytes


def test_a_damaged_tokenizer_of_the_cache_says_what_to_remove(tmp_path: Path) -> None:
    config = corpus(tmp_path / "c")
    run(config)
    (folder,) = (tmp_path / "cache" / "tokenizers").iterdir()
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=rf"damaged or no tokenizer.*Remove {folder}; it will be made anew"):
        run(config)


def test_an_interrupted_preparation_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, "tokenise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(corpus(tmp_path / "c"))
    assert "Interrupted while tokenising" in caplog.text


class Unpinned(Source):
    """A source that nobody can read again."""

    @property
    def is_replayable(self) -> bool:
        return False


def test_what_cannot_be_read_again_is_stored_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prepare_module, "Source", Unpinned)
    config = corpus(tmp_path / "c")
    run(config).tokenizer.save(tmp_path / "t")
    config = config.model_copy(update={"tokenizer": str(tmp_path / "t"), "cache_dir": str(tmp_path / "other")})
    honest = prepare_module.StoreWriter.finish
    monkeypatch.setattr(prepare_module.StoreWriter, "finish", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(DataError, match="full"):
        run(config)
    assert list((tmp_path / "other" / "tokens").iterdir()) == [], "the parts of an interrupted call are none"
    monkeypatch.setattr(prepare_module.StoreWriter, "finish", honest)
    first = run(config)
    assert first.describe()["not_replayable"] == 1
    assert "is not pinned to a commit" in caplog.text
    # Elsewhere, under the same name, there is something else by now.
    honest_identity = Source.identity(Source("data", config, config, tmp_path))
    monkeypatch.setattr(Unpinned, "identity", lambda _self: honest_identity)
    corpus(tmp_path / "c", [*texts(39), "something else " * 50])
    elsewhere = run(config.model_copy(update={"cache_dir": str(tmp_path / "elsewhere")}))
    assert elsewhere.fingerprint != first.fingerprint
    assert run(config).fingerprint == first.fingerprint
