"""Tokenising in parts: the same store whatever interrupts it, and texts in pieces that make the tokens of the whole."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colakit.config.schema import DataConfig
from colakit.data import store as store_module
from colakit.data import tokenise as tokenise_module
from colakit.data.bpe import train_bpe
from colakit.data.cache import cache_root
from colakit.data.document import Document, hash64, pieces
from colakit.data.prepare import PreparedData, prepare
from colakit.data.store import DocumentStore
from colakit.data.tokenise import Progress, encode_documents
from colakit.data.tokenizer import Tokenizer
from colakit.errors import DataError

SHARED_TOKENIZER = Path(__file__).parents[3] / "shared" / "data" / "tokenizer_smollm2"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = [f"the {i} quick brown foxes aren't jumping\n\n  over 12 lazy dogs: naïve 東京 {i * i}" for i in range(300)]
    made = train_bpe(texts, 500)
    made.save(tmp_path_factory.mktemp("tokenizer"))
    return made


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 500 characters and parts of 2 kB."""
    monkeypatch.setattr(tokenise_module, "_BATCH_CHARS", 500)
    monkeypatch.setattr(tokenise_module, "_PART_BYTES", 2000)


def corpus(folder: Path, tokenizer: Tokenizer, n: int = 120) -> DataConfig:
    tokenizer.save(folder / "tokenizer")
    for name in ("a", "b"):
        lines = [json.dumps({"text": f"{name} document {i} of lazy dogs " * (1 + i % 5)}) for i in range(n)]
        (folder / f"{name}.jsonl").write_text("\n".join([*lines[:7], "{broken", *lines[7:]]))
    return DataConfig(
        source="files",
        path=str(folder / "*.jsonl"),
        tokenizer=str(folder / "tokenizer"),
        val_fraction=0.1,
        on_bad_record="skip",
        cache_dir=str(folder / "cache"),
    )


def run(config: DataConfig, **options: Any) -> PreparedData:
    return prepare(config, seq_len=16, vocab_size=500, **options)


def content(config: DataConfig) -> dict[str, bytes]:
    """The files of the only store, by name."""
    (folder,) = (cache_root(config) / "tokens").iterdir()
    here, anywhere = str(Path(config.path or "").parent).encode(), b"x" * len(str(Path(config.path or "").parent))
    # done.json has hashes of parts, which name their folder where a record is bad.
    parts = sorted(folder.glob("part-*"))
    return {path.name: path.read_bytes().replace(here, anywhere) for path in parts}


@pytest.mark.usefixtures("small_parts")
def test_what_is_interrupted_goes_on_behind_the_last_part(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "holes"):
        (tmp_path / name).mkdir()
    whole, cut = (corpus(tmp_path / name, tokenizer) for name in ("whole", "holes"))
    done = run(whole)
    n_parts = len(content(whole))
    assert n_parts > 5
    encoded: list[str] = []
    honest = Tokenizer.encodings

    def interrupted(self: Tokenizer, texts: list[str]) -> list[Any]:
        if len(encoded) >= limit:
            raise KeyboardInterrupt
        encoded.extend(texts)
        return honest(self, texts)

    monkeypatch.setattr(Tokenizer, "encodings", interrupted)
    total = 0
    for limit in (50, 30, 60, 10_000):
        encoded.clear()
        if limit == 10_000:
            again = run(cut)
        else:
            with pytest.raises(KeyboardInterrupt):
                run(cut)
        total += len(encoded)
    assert content(cut) == content(whole)
    assert 240 < total < 2 * 240, "finished parts were not tokenised again"
    assert again.describe()["bad_records"] == done.describe()["bad_records"] == 2
    counts = [{k: v for k, v in data.describe().items() if k != "tokenizer"} for data in (again, done)]
    assert counts[0] == counts[1]


CHILD = """
import sys
from colakit.config.schema import DataConfig
from colakit.data import tokenise
from colakit.data.prepare import prepare
tokenise._BATCH_CHARS, tokenise._PART_BYTES = 500, 2000
print("ready", flush=True)
prepare(DataConfig.model_validate_json(sys.argv[1]), seq_len=16, vocab_size=500)
"""


def test_kills_at_random_moments_leave_what_a_later_call_completes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name in ("whole", "holes"):
        (tmp_path / name).mkdir()
    whole, killed = (corpus(tmp_path / name, tokenizer, n=1500) for name in ("whole", "holes"))
    subprocess.run([sys.executable, "-c", CHILD, whole.model_dump_json()], check=True, capture_output=True)
    rng = random.Random(0)
    n_kills = 0
    for _ in range(60):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, killed.model_dump_json()], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0.02, 0.35))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        if child.returncode == 0:
            break
        n_kills += 1
        if n_kills == 4:  # and now to its end
            subprocess.run([sys.executable, "-c", CHILD, killed.model_dump_json()], check=True, capture_output=True)
            break
    assert n_kills >= 1
    left = {name: data for name, data in content(killed).items() if not name.startswith(".")}
    assert left == content(whole)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("fails_at", [0, 2, 99])
def test_a_full_disk_is_one_error_and_trusts_nothing_half_written(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    config = corpus(tmp_path, tokenizer)
    honest = store_module._write_whole
    calls = iter(range(1000))

    def full(path: Path, write: Any) -> None:
        def half(partial: Path) -> None:
            write(partial)
            if next(calls) >= fails_at or (fails_at == 99 and path.name == "done.json"):
                partial.write_bytes(partial.read_bytes()[:40])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        honest(path, half)

    monkeypatch.setattr(store_module, "_write_whole", full)
    with pytest.raises(DataError, match=r"cannot be read or written: No space left on device.*data\.cache_dir=PATH"):
        run(config)
    (folder,) = (cache_root(config) / "tokens").iterdir()
    assert not (folder / "done.json").exists()
    assert len(list(folder.glob("part-*"))) == (fails_at if fails_at < 99 else len(list(folder.glob("part-*"))))
    assert list(folder.glob(".*")) == []
    monkeypatch.setattr(store_module, "_write_whole", honest)
    assert len(DocumentStore(folder) if (folder / "done.json").exists() else run(config).sources[0].store) == 240


@pytest.mark.usefixtures("small_parts")
def test_progress_is_told_to_the_end(tmp_path: Path, tokenizer: Tokenizer) -> None:
    seen: list[Progress] = []
    config = corpus(tmp_path, tokenizer)
    run(config, watch=seen.append)
    n_bytes = sum(path.stat().st_size for path in tmp_path.glob("*.jsonl"))
    assert seen[-1] == Progress("data", "tokenising", 240, n_bytes, n_bytes)
    assert [p.documents for p in seen] == sorted(p.documents for p in seen)
    assert len(seen) > 5


# --- texts in pieces

TEXTS = st.text(st.sampled_from("aé東 \n\t."), max_size=200)


@given(text=TEXTS, size=st.integers(1, 50))
def test_pieces_joined_are_the_text_cut_before_white_space_where_there_is_any(text: str, size: int) -> None:
    found = list(pieces(text, size))
    assert "".join(found) == text
    assert all(len(piece) <= size for piece in found)
    for one, two in pairwise(found):
        before_space = two[0].isspace() and not one[-1].isspace()
        assert before_space or " " not in one.lstrip()


WORDS = ["fox", " ", "  ", "\n", "\n\n ", "naïve", "東京", "12", "aren't", "."]


@settings(max_examples=200, deadline=None)
@given(
    words=st.lists(
        st.sampled_from(["fox", " ", "  ", "\n", "\n\n ", "naïve", "東京", "12", "aren't", "."]), max_size=60
    )
)
def test_a_text_in_pieces_has_the_tokens_of_the_whole(tokenizer: Tokenizer, words: list[str]) -> None:
    text = "start " + "".join(words)
    (whole,) = encode_documents(tokenizer, [text], 8.0)
    assert whole.tolist() == [*tokenizer.encode_batch([text])[0], tokenizer.eot_id]
    for size in (40, 64):
        cut_at_space = all(p[0].isspace() for p in list(pieces(text, size))[1:])
        (cut,) = encode_documents(tokenizer, [text], size / 1e6)
        assert not cut_at_space or np.array_equal(cut, whole)


@pytest.mark.skipif(not SHARED_TOKENIZER.is_dir(), reason="the tokenizer is not here")
def test_smollm2s_tokens_are_those_of_the_whole() -> None:
    from colakit.data.corpus import read_stdlib
    from colakit.data.tokenizer import read_tokenizer

    smollm2 = read_tokenizer(SHARED_TOKENIZER, source="SmolLM2")
    texts = [document.text for document, _ in zip(read_stdlib(), range(40), strict=False)]
    whole = encode_documents(smollm2, texts, 8.0)
    cut = encode_documents(smollm2, texts, 0.002)
    assert all(np.array_equal(a, b) for a, b in zip(whole, cut, strict=True))


def test_a_document_that_makes_no_token_has_no_end_either(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = tokenizer.encodings
    monkeypatch.setattr(tokenizer, "encodings", lambda texts: honest(["" if t == "nothing" else t for t in texts]))
    (x,), (y,) = tokenizer.encode_batch(["x", "y"])
    encoded = encode_documents(tokenizer, ["x", "nothing", "y"], 8.0)
    assert [ids.tolist() for ids in encoded] == [[x, tokenizer.eot_id], [], [y, tokenizer.eot_id]]


# --- hashes


def test_the_group_is_the_ids_part_before_the_hash_sign_else_the_words() -> None:
    assert Document("a", "book#1").hashes()[0] == Document("b", "book#2").hashes()[0] == hash64(b"book")
    assert Document("a b", "plain").hashes()[0] == Document("a\n b ").hashes()[0] == hash64(b"a b")
    assert Document("a  b", "book#1").hashes()[1] == hash64(b"a b")


def test_long_texts_are_hashed_in_pieces_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"word{i} \n\t"[: 6 + i % 4] for i in range(3000))
    whole = Document(text).hashes()
    monkeypatch.setattr("colakit.data.document._PIECE_CHARS", 100)
    assert Document(text).hashes() == whole
