"""The tokenizer wrapper, the BPE we train, and finding tokenizers by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from colakit.data.bpe import train_bpe
from colakit.data.pretrained import check_tokenizer, load_tokenizer
from colakit.data.tokenizer import Tokenizer
from colakit.errors import DataError

TEXTS = ["the cat sat on the mat 123 123 123", "the dog sat on the log 1234", "naïve café 日本語 " * 4] * 3
BPE = train_bpe(TEXTS, 290)
SMOLLM2 = Path(__file__).parents[3] / "shared" / "data" / "tokenizer_smollm2"

UNICODE = st.text(st.characters(codec="utf-8"), max_size=60)  # every character but surrogates


def spelled(ids: list[int], tokenizer: Tokenizer) -> bytes:
    assert tokenizer.token_bytes is not None
    return b"".join(tokenizer.token_bytes[i] for i in ids)


# --- the BPE we train


@given(st.lists(UNICODE | st.just("a <|endoftext|> b"), max_size=4))
def test_any_text_comes_back_from_its_ids_and_bytes(texts: list[str]) -> None:
    for text, ids in zip(texts, BPE.encode_batch(texts), strict=True):
        assert BPE.decode(ids) == text
        assert spelled(ids, BPE) == text.encode()
        assert BPE.eot_id not in ids
        assert all(0 <= i < BPE.n_tokens for i in ids)


def test_ids_of_a_trained_bpe() -> None:
    assert BPE.n_tokens == 290
    assert (BPE.eot_id, BPE.eot_token) == (0, "<|endoftext|>")
    assert BPE.token_bytes is not None
    assert BPE.token_bytes[0] == b""
    assert set(BPE.token_bytes[1:257]) == {bytes([byte]) for byte in range(256)}
    assert b" the" in BPE.token_bytes


def test_few_texts_give_few_tokens_and_all_bytes() -> None:
    assert train_bpe([], 4096).n_tokens == 257
    small = train_bpe(["ab ab ab"], 4096)
    assert 257 < small.n_tokens < 270
    assert train_bpe(TEXTS, 100).n_tokens == 257


def test_digits_stand_alone() -> None:
    tokenizer = train_bpe(["2024 2024 abab abab " * 50], 300)
    assert tokenizer.token_bytes is not None
    assert b" abab" in tokenizer.token_bytes
    assert len(tokenizer.encode_batch(["2024"])[0]) == 4


def test_training_is_deterministic() -> None:
    assert train_bpe(iter(TEXTS), 290).fingerprint == BPE.fingerprint
    assert train_bpe(TEXTS, 291).fingerprint != BPE.fingerprint


# --- saving and loading


def test_a_saved_tokenizer_is_the_same_here_and_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    BPE.save(tmp_path)
    for name in (tmp_path, tmp_path / "tokenizer.json"):
        again = load_tokenizer(str(name))
        assert again.fingerprint == BPE.fingerprint
        assert again.token_bytes == BPE.token_bytes
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = "the cat , sat . 12 café"
    assert theirs(text)["input_ids"] == BPE.encode_batch([text])[0]
    assert theirs.decode(theirs(text)["input_ids"]) == text
    assert (theirs.eos_token_id, len(theirs)) == (0, BPE.n_tokens)


def backend(*special: str, vocab: dict[str, int] | None = None) -> Backend:
    """A byte-level tokenizer of single bytes, with special tokens behind them."""
    chars = vocab or {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Backend(models.BPE(vocab=chars, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(special))
    return made


@pytest.mark.parametrize(
    ("special", "eos_token", "expected"),
    [
        (["<|im_end|>", "<|endoftext|>"], "<|im_end|>", "<|endoftext|>"),
        (["<|eot_id|>", "<|end_of_text|>"], "<|eot_id|>", "<|end_of_text|>"),
        (["</s>", "<eos>", "<stop>"], "<stop>", "<stop>"),
        (["<eos>", "</s>"], None, "</s>"),
        (["<|im_end|>"], "<absent>", "<|im_end|>"),
    ],
)
def test_the_end_of_text_token_is_found(
    special: list[str], eos_token: str | None, expected: str, tmp_path: Path
) -> None:
    made = backend(*special)
    made.save(str(tmp_path / "tokenizer.json"))
    for config in ({"eos_token": eos_token}, {"eos_token": {"content": eos_token, "lstrip": False}}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = load_tokenizer(str(tmp_path))
        assert tokenizer.eot_token == expected
        assert tokenizer.eot_id == made.token_to_id(expected)


def test_a_tokenizer_without_an_end_of_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"'x': no token ends a document.*eos_token"):
        Tokenizer(backend("<pad>"), source="x")


def test_padding_and_truncation_of_the_file_are_off(tmp_path: Path) -> None:
    made = backend("</s>")
    made.enable_padding(length=50)
    made.enable_truncation(max_length=3)
    made.save(str(tmp_path / "tokenizer.json"))
    assert [len(ids) for ids in load_tokenizer(str(tmp_path)).encode_batch(["abcdef", "a"])] == [6, 1]


def test_n_tokens_counts_rows_not_tokens() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(backend("</s>", vocab={char: 3 * i for i, char in enumerate(alphabet)}), source="holes")
    assert tokenizer.n_tokens == 3 * 255 + 1
    assert tokenizer.token_bytes is not None
    assert len(tokenizer.token_bytes) == tokenizer.n_tokens
    assert tokenizer.token_bytes[1] == b""


# --- exact bytes


def test_literal_added_tokens_stand_for_their_text() -> None:
    made = backend("</s>")
    made.add_tokens(["<tool>"])
    tokenizer = Tokenizer(made, source="x")
    ids = tokenizer.encode_batch(["a<tool>b</s>"])[0]
    assert made.token_to_id("<tool>") in ids
    assert spelled(ids, tokenizer) == b"a<tool>b</s>"


def _prefix_space(made: Backend) -> None:
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def _nfc(made: Backend) -> None:
    made.normalizer = normalizers.Sequence([normalizers.NFC()])


def _drops_spaces(made: Backend) -> None:
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _removes(made: Backend) -> None:
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _not_bytes(made: Backend) -> None:
    made.decoder = decoders.Metaspace()
    made.pre_tokenizer = pre_tokenizers.Metaspace()


@pytest.mark.parametrize("change", [_prefix_space, _nfc, _drops_spaces, _removes, _not_bytes])
def test_no_bytes_where_text_may_change(change: Callable[[Backend], None]) -> None:
    made = backend("</s>")
    assert Tokenizer(made, source="x").token_bytes is not None
    change(made)
    assert Tokenizer(made, source="x").token_bytes is None


# --- SmolLM2's own


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="needs shared/data/tokenizer_smollm2")
def test_smollm2_gives_its_published_ids() -> None:
    tokenizer = load_tokenizer(str(SMOLLM2))
    assert (tokenizer.n_tokens, tokenizer.eot_id) == (49_152, 0)
    published = {
        "Once upon a time": [6403, 1980, 253, 655],
        "Hello": [19556],
        "The capital of France is": [504, 3575, 282, 4649, 314],
        "def fibonacci(n):": [1604, 3987, 46477, 24, 94, 727],
    }
    assert tokenizer.encode_batch(list(published)) == list(published.values())
    text = "héé <|endoftext|> <|im_start|> 12 \r\n 日本 😀"
    ids = tokenizer.encode_batch([text])[0]
    assert spelled(ids, tokenizer) == text.encode()
    assert tokenizer.decode(ids) == text
    assert min(ids) > 16, "no special token from text"


# --- names that lead nowhere


def test_missing_and_damaged_local_tokenizers(tmp_path: Path) -> None:
    for name in (str(tmp_path / "none"), "./none", "~/none/at/all", "none/tokenizer.json"):
        for call in (check_tokenizer, load_tokenizer):
            with pytest.raises(DataError, match=r"no such file or folder.*hub name"):
                call(name)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds no tokenizer\.json \(it holds tokenizer\.model\)"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(DataError, match="is damaged or no tokenizer"):
        load_tokenizer(str(tmp_path))
    BPE.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match="not a tokenizer's configuration"):
        load_tokenizer(str(tmp_path))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["owner/model", "gpt2", "not a name"])
def test_an_unreachable_hub_names_the_ways_out(offline: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        load_tokenizer(name)
    for part in (name, "data.tokenizer=bpe", "local folder", "HF_HOME"):
        assert part in str(caught.value)


def _cache_repository(cache: Path, *, config: dict[str, Any] | None) -> None:
    """What huggingface_hub's cache holds of a repository after its files were downloaded."""
    root = cache / "models--owner--model"
    snapshot = root / "snapshots" / ("0" * 40)
    BPE.save(snapshot)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    (snapshot / "tokenizer_config.json").unlink()
    if config is not None:
        (snapshot / "tokenizer_config.json").write_text(json.dumps(config))


def test_a_cached_hub_tokenizer_needs_no_network(offline: Path) -> None:
    _cache_repository(offline, config={"eos_token": "</s>"})
    assert load_tokenizer("owner/model").fingerprint == BPE.fingerprint


def test_a_cache_without_the_optional_configuration_serves_offline(offline: Path) -> None:
    _cache_repository(offline, config=None)
    assert load_tokenizer("owner/model").fingerprint == BPE.fingerprint


def test_a_tokenizer_that_may_not_be_read(tmp_path: Path, lock: Callable[[Path], None]) -> None:
    BPE.save(tmp_path / "locked" / "tokenizer")
    lock(tmp_path / "locked")
    for call in (check_tokenizer, load_tokenizer):
        with pytest.raises(DataError, match=r"tokenizer' cannot be read: Permission denied\. Give a folder"):
            call(str(tmp_path / "locked" / "tokenizer"))
    with pytest.raises(DataError, match=r"locked/tokenizer\.json cannot be read: Permission denied\. Check"):
        load_tokenizer(str(tmp_path / "locked"))


@pytest.mark.parametrize("name", ["x" * 5000, "/" + "x" * 5000])
def test_a_tokenizer_name_longer_than_any_path(name: str) -> None:
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        check_tokenizer(name)


def test_a_tokenizer_in_an_unknown_home() -> None:
    with pytest.raises(DataError, match=r"data\.tokenizer = '~nobody-here/t': that home folder is not known"):
        check_tokenizer("~nobody-here/t")


def test_a_text_cannot_spell_the_end_of_text(tmp_path: Path) -> None:
    """A token like any other of its file becomes a special one; where that does not help, the tokenizer is refused."""
    plain = Backend(models.BPE(vocab={"a": 0, "b": 1, "</s>": 2, "<": 3, "/": 4, "s": 5, ">": 6}, merges=[]))
    plain.add_tokens(["</s>"])
    tokenizer = Tokenizer(plain, source="plain")
    assert tokenizer.eot_id == 2
    assert all(2 not in ids for ids in tokenizer.encode_batch(["</s>", "a</s>b"]))
    words = Backend(models.WordLevel({"a": 0, "[SEP]": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(DataError, match=r"'words': a text that says '\[SEP\]' gets the token that ends documents"):
        Tokenizer(words, source="words")
    with pytest.raises(DataError, match="a text that says 'a' gets the token"):
        Tokenizer(Backend(models.BPE(vocab={"a": 0, "b": 1}, merges=[])), source="x", eos_token="a")
