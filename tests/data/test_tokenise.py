"""From documents to tokens: killed at any moment and resumed it ends the same; faults are told; memory stays small."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from colakit.config.schema import DataConfig
from colakit.data import own_bpe as own_bpe_module
from colakit.data import prepare as prepare_module
from colakit.data import tokenise as tokenise_module
from colakit.data.bpe import train_bpe
from colakit.data.prepare import PreparedData, prepare
from colakit.data.store import StoreWriter
from colakit.data.tokenise import Progress
from colakit.data.tokenizer import Tokenizer
from colakit.errors import DataError
from tests.data.stores import encode_documents

ROOT = Path(__file__).parents[2]

# Batches and parts small enough that a kill falls between any two of them.
CHILD = """
import sys
from colakit.config.schema import DataConfig
from colakit.data import tokenise
from colakit.data.prepare import prepare
tokenise._BATCH_CHARS, tokenise._PART_BYTES = 2000, 4000
config = DataConfig.model_validate_json(sys.argv[1])
print("ready", flush=True)
prepare(config, seq_len=16, vocab_size=300)
print("done", flush=True)
"""


def corpus(folder: Path, n: int = 400, **options: Any) -> DataConfig:  # Any: fields of any type
    """Three files of long and short documents, with bad records among them."""
    folder.mkdir()
    words = ["alpha", "beta", "naïve", "1234", "漢字", "\n\n", "end."]
    for name in "abc":
        rows = [
            json.dumps(
                {"text": " ".join(words[(i * 7 + j * j) % len(words)] for j in range(1 + i % 97)) + f" {name}{i}"}
            )
            for i in range(n)
        ]
        for place in (n, n // 2, n // 3, 0):
            rows.insert(place, "{bad")
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    fields = {"on_bad_record": "skip", "min_words": 3, "cache_dir": str(folder.parent / "cache"), **options}
    return DataConfig(source="files", path=str(folder), val_fraction=0.1, **fields)


def run(config: DataConfig, watch: Any = tokenise_module.unwatched) -> PreparedData:
    return prepare(config, seq_len=16, vocab_size=300, watch=watch)


def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenise_module, "_BATCH_CHARS", 2000)
    monkeypatch.setattr(tokenise_module, "_PART_BYTES", 4000)


def stored(config: DataConfig) -> dict[str, bytes]:
    """The files of the only store."""
    (folder,) = (Path(str(config.cache_dir)) / "tokens").iterdir()
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def child(config: DataConfig) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "true"}
    command = [sys.executable, "-c", CHILD, config.model_dump_json()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_killed_at_random_moments_it_ends_as_if_undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_parts(monkeypatch)
    whole = corpus(tmp_path / "c", 150)
    expected = run(whole).describe()
    assert len(stored(whole)) > 10
    assert expected["bad_records"] == 12
    config = whole.model_copy(update={"cache_dir": str(tmp_path / "killed")})
    tokens = tmp_path / "killed" / "tokens"
    moments = random.Random(5)
    kept: dict[Path, int] = {}
    n_killed = 0
    for _ in range(3):
        process = child(config)
        assert process.stdout is not None
        with process.stdout:
            n_parts = len(list(tokens.glob("*/part*"))) + moments.randrange(1, 4)
            while process.poll() is None and len(list(tokens.glob("*/part*"))) < n_parts:
                time.sleep(0.001)
            time.sleep(moments.random() * 0.01)
            process.send_signal(signal.SIGKILL)
            n_killed += process.wait() == -signal.SIGKILL
        assert all(path.stat().st_mtime_ns == written for path, written in kept.items()), "finished parts are kept"
        kept = {path: path.stat().st_mtime_ns for path in tokens.glob("*/part*")}
    assert n_killed >= 2
    assert run(config).describe() == expected, "bad and short records are counted once"
    assert stored(config) == stored(whole)


def test_stopped_behind_every_part_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill leaves, made by hand: the first parts, without the end."""
    small_parts(monkeypatch)
    config = corpus(tmp_path / "c", 60)
    expected, files = run(config).describe(), stored(config)
    (folder,) = (tmp_path / "cache" / "tokens").iterdir()
    n_parts = len(files) - 1
    assert n_parts > 4
    encoded: list[str] = []
    honest = Tokenizer.encodings
    monkeypatch.setattr(Tokenizer, "encodings", lambda self, texts: encoded.extend(texts) or honest(self, texts))
    for kept in range(n_parts + 1):
        (folder / "done.json").unlink()
        for number in range(kept, n_parts):
            (folder / f"part-{number:05}.arrow").unlink()
        encoded.clear()
        assert run(config).describe() == expected
        assert stored(config) == files
        assert bool(encoded) == (kept < n_parts), "what is finished is not tokenised again"


def test_a_disk_that_is_full_says_so_and_room_mends_it(tmp_path: Path) -> None:
    whole = corpus(tmp_path / "c")
    run(whole)
    config = whole.model_copy(update={"cache_dir": str(tmp_path / "full")})
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000,) * 2)\n"
        "import colakit.errors as e, sys\n"
        "try:\n"
        + "\n".join(f"    {line}" for line in CHILD.replace(" = 2000, 4000", " = 2**20, 2**20").split("\n"))
        + "\nexcept e.DataError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, config.model_dump_json()]
    outcome = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "done" not in outcome.stdout.split()
    assert "cannot be read or written: " in outcome.stdout
    assert "Give it room and permissions, or choose another place with --set data.cache_dir=PATH" in outcome.stdout
    assert not list((tmp_path / "full").rglob("*.arrow")), outcome.stdout
    assert not list((tmp_path / "full").rglob(".*")), "nothing half-written stays"
    run(config)
    assert stored(config) == stored(whole)


def test_a_bad_record_fails_by_default(tmp_path: Path) -> None:
    config = corpus(tmp_path / "c", on_bad_record="fail")
    with pytest.raises(
        DataError, match=r"a\.jsonl, line 1: not valid JSON \(.*\)\. JSONL holds one object on each line"
    ):
        run(config)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_skipping_goes_on_behind_what_a_failed_call_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_parts(monkeypatch)
    failing = corpus(tmp_path / "c", 60, on_bad_record="fail", **loaded_tokenizer(tmp_path))
    path = tmp_path / "c" / "a.jsonl"
    path.write_text(path.read_text().replace("{bad\n", "") + "{bad\n")
    with pytest.raises(DataError, match=r"a\.jsonl, line 61: not valid JSON .*: --on-bad-record skip\.$"):
        run(failing)
    kept = {part: part.stat().st_mtime_ns for part in (tmp_path / "cache").rglob("*.arrow")}
    rows = sum(len(json.loads(line)["text"].split()) >= 3 for line in path.read_text().splitlines()[:60])
    assert len(kept) >= 2
    assert sum(len(Dataset.from_file(str(part))) for part in kept) == rows, "all before the fault"
    skipping = failing.model_copy(update={"on_bad_record": "skip"})
    data = run(skipping)
    assert data.describe()["bad_records"] == 9
    assert all(part.stat().st_mtime_ns == written for part, written in kept.items())
    whole = skipping.model_copy(update={"cache_dir": str(tmp_path / "whole")})
    assert run(whole).describe() == data.describe()


def test_what_is_left_out_behind_the_last_good_document_of_a_failed_call_counts_once(tmp_path: Path) -> None:
    failing = corpus(tmp_path / "c", 60, on_bad_record="fail", **loaded_tokenizer(tmp_path))
    path = tmp_path / "c" / "a.jsonl"
    path.write_text(path.read_text().replace("{bad\n", "") + '{"text": "too short"}\n' * 3 + "{bad\n")
    with pytest.raises(DataError, match=r"a\.jsonl, line 64: not valid JSON"):
        run(failing)
    assert list((tmp_path / "cache").rglob("*.arrow"))
    skipping = failing.model_copy(update={"on_bad_record": "skip"})
    whole = skipping.model_copy(update={"cache_dir": str(tmp_path / "whole")})
    assert run(skipping).describe() == run(whole).describe()


def test_of_two_calls_at_once_one_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """A call that failed put its short part in the place of another's whole one."""
    small_parts(monkeypatch)
    caplog.set_level(logging.INFO, "colakit")
    skipping = corpus(tmp_path / "c", 60, **loaded_tokenizer(tmp_path))
    failing = skipping.model_copy(update={"on_bad_record": "fail"})
    expected = run(skipping.model_copy(update={"cache_dir": str(tmp_path / "alone")})).describe()
    has_begun, may_end = threading.Event(), threading.Event()
    honest = StoreWriter.write

    def write(self: StoreWriter, *args: Any) -> None:
        honest(self, *args)
        has_begun.set()
        assert may_end.wait(60)

    monkeypatch.setattr(StoreWriter, "write", write)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run, skipping)
        assert has_begun.wait(60)
        second = pool.submit(run, failing)
        waiting = f"Another process is preparing {tmp_path}/c: waiting for it …"
        while waiting not in caplog.text and not second.done():
            time.sleep(0.01)
        may_end.set()
        assert first.result().describe() == expected
        with pytest.raises(DataError, match="line 1: not valid JSON"):
            second.result()
    assert waiting in caplog.text
    assert run(skipping).describe() == expected


def test_what_was_skipped_is_a_fault_to_a_call_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_parts(monkeypatch)
    skipping = corpus(tmp_path / "c", 60, **loaded_tokenizer(tmp_path))
    run(skipping)
    failing = skipping.model_copy(update={"on_bad_record": "fail"})
    fault = r"^.*a\.jsonl, line 1: not valid JSON .* --on-bad-record skip\.$"
    with pytest.raises(DataError, match=fault):
        run(failing)
    (folder,) = (tmp_path / "cache" / "tokens").iterdir()
    (folder / "done.json").unlink()
    (folder / "part-00001.arrow").unlink()
    monkeypatch.setattr(prepare_module, "tokenise", lambda *_, **__: pytest.fail("known before anything is read"))
    with pytest.raises(DataError, match=fault):
        run(failing)


def loaded_tokenizer(folder: Path) -> dict[str, str]:
    train_bpe(["alpha beta naïve 1234 漢字\n\n end."], 280).save(folder / "t")
    return {"tokenizer": str(folder / "t")}


def test_bad_records_are_listed_again_from_the_cache(tmp_path: Path) -> None:
    config = corpus(tmp_path / "c", 60)
    for _ in range(2):
        (source,) = run(config).sources
        assert (source.store.n_bad, len(source.store.bad)) == (12, 12)
        assert source.store.bad[1].startswith(f"{tmp_path}/c/a.jsonl, line 22: not valid JSON")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{bad\n" * 3, r"no record that can be read; the first of 3: .*a\.jsonl, line 1"),
        ('{"text": "one two"}\n', r"no document of 3 words\. Lower data\.min_words\.$"),
        ('{"text": " "}\n', "no text, or blanks alone"),
    ],
)
@pytest.mark.parametrize("tokenizer", ["bpe", "loaded"])
def test_a_source_of_nothing_says_what_there_was(tmp_path: Path, content: str, message: str, tokenizer: str) -> None:
    config = corpus(tmp_path / "c", 60)
    if tokenizer == "loaded":
        run(config).tokenizer.save(tmp_path / "t")
        config = config.model_copy(update={"tokenizer": str(tmp_path / "t")})
    for name in "bc":
        (tmp_path / "c" / f"{name}.jsonl").unlink()
    (tmp_path / "c" / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match=rf"c holds {message}"):
        run(config)


def test_progress_comes_to_all_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_parts(monkeypatch)
    seen: list[Progress] = []
    data = run(corpus(tmp_path / "c"), seen.append)
    n_bytes = sum(path.stat().st_size for path in (tmp_path / "c").iterdir())
    for doing in ("reading", "tokenising"):
        steps = [progress for progress in seen if progress.doing == doing]
        assert len(steps) > 10
        assert [p.bytes_read for p in steps] == sorted(p.bytes_read for p in steps)
        assert (steps[-1].bytes_read, steps[-1].bytes_total) == (n_bytes, n_bytes)
        assert steps[-1].documents == len(data.sources[0].store)
        assert steps[0].bytes_read < n_bytes


def test_only_documents_above_the_limit_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = own_bpe_module.train_bpe(["some words"] * 3, 270)
    batches: list[list[str]] = []
    honest = Tokenizer.encodings
    monkeypatch.setattr(Tokenizer, "encodings", lambda self, texts: batches.append(list(texts)) or honest(self, texts))
    short, long = "some " * 200, "some " * 201
    first, second, third = encode_documents(tokenizer, [short, long, ""], 0.001)
    assert batches == [[short, ("some " * 200)[:-1], " some ", ""]]
    assert third.tolist() == []
    for ids, text in ((first, short), (second, long)):
        assert ids.tolist() == [*honest(tokenizer, [text])[0].ids, tokenizer.eot_id]
    batches.clear()
    monkeypatch.setattr(tokenise_module, "_PART_CHARS", 100)
    encode_documents(tokenizer, [short, long], 0.001)
    assert short in batches[0], "whole up to the limit"
    assert max(map(len, batches[0][1:])) <= 100, "then in pieces that many cores can share"
    batches.clear()
    monkeypatch.setattr(tokenise_module, "_BATCH_CHARS", 1000)
    giants = [long * 9, "words " * 999]
    for ids, text in zip(encode_documents(tokenizer, giants, 0.001), giants, strict=True):
        assert ids.tolist() == [*honest(tokenizer, [text])[0].ids, tokenizer.eot_id]
    assert len(batches) > 10
    assert max(sum(map(len, batch)) for batch in batches[:-2]) <= 1500, "one giant is not encoded at once"


@pytest.mark.parametrize("letter", ["x", "é", "漢", "😀"])
def test_the_limit_of_a_document_is_in_bytes(monkeypatch: pytest.MonkeyPatch, letter: str) -> None:
    tokenizer = own_bpe_module.train_bpe(["some words"] * 3, 270)
    texts: list[str] = []
    honest = Tokenizer.encodings
    monkeypatch.setattr(Tokenizer, "encodings", lambda self, asked: texts.extend(asked) or honest(self, asked))
    n = 1000 // len(letter.encode())
    encode_documents(tokenizer, [letter * n, letter * (n + 1)], 0.001)
    assert texts == [letter * n, letter * n, letter]


def test_a_document_that_makes_no_token_has_no_end_either(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = own_bpe_module.train_bpe(["some words"] * 3, 270)
    honest = tokenizer.encodings
    monkeypatch.setattr(tokenizer, "encodings", lambda texts: honest(["" if t == "nothing" else t for t in texts]))
    (x,), (y,) = tokenizer.encode_batch(["x", "y"])
    encoded = encode_documents(tokenizer, ["x", "nothing", "y"], 8.0)
    assert [ids.tolist() for ids in encoded] == [[x, tokenizer.eot_id], [], [y, tokenizer.eot_id]]


MEMORY = """
import resource, sys
from colakit.config.schema import DataConfig
from colakit.data.prepare import prepare
import datasets, pyarrow.parquet
DataConfig
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = prepare(DataConfig.model_validate_json(sys.argv[1]), seq_len=16, vocab_size=2**17)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, data.describe()["text_bytes"])
"""


@pytest.mark.parametrize("ending", ["jsonl", "txt"])
def test_one_giant_line_is_read_and_costs_little_memory(tmp_path: Path, ending: str) -> None:
    n = 3_000_000
    text = "one giant line of 漢字 " * (n // 24)
    (tmp_path / "c").mkdir()
    giant = json.dumps({"text": text}, ensure_ascii=False) + "\n" if ending == "jsonl" else text
    (tmp_path / "c" / f"a.{ending}").write_text(giant)
    (tmp_path / "c" / "b.jsonl").write_text(
        "".join(json.dumps({"text": f"text {i} of all"}) + "\n" for i in range(500))
    )
    own_bpe_module.train_bpe([text[:9999]], 400).save(tmp_path / "t")
    config = DataConfig(source="files", path=str(tmp_path / "c"), tokenizer=str(tmp_path / "t"), max_document_mb=0.5)
    config = config.model_copy(update={"cache_dir": str(tmp_path / "cache")})
    command = [sys.executable, "-c", MEMORY, config.model_dump_json()]
    outcome = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert outcome.returncode == 0, outcome.stderr
    before, peak, text_bytes = map(int, outcome.stdout.split())
    assert text_bytes > len(text.encode())
    assert peak - before < 500 * 1024, "KiB"
