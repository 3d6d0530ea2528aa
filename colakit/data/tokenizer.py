"""One wrapper over `tokenizers.Tokenizer`: what training needs of a tokenizer, found in the file and not assumed.

Training a tokenizer is `bpe`, finding one on disk or in the hub's cache `pretrained`.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding
from tokenizers import Tokenizer as Backend

from colakit.data.bytelevel import exact_bytes
from colakit.errors import DataError

# In this order. A chat model's eos_token ends a turn (phi-4: <|im_end|>), while its documents end with one of these.
_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<|end▁of▁sentence|>")
_END_OTHERWISE = ("</s>", "<eos>", "<|eos|>", "[EOS]", "<|im_end|>", "[SEP]")


class Tokenizer:
    """Text to ids and back. Ids below `n_tokens`; documents end with `eot_id`, which no text can spell."""

    def __init__(self, backend: Backend, *, source: str, eos_token: str | None = None) -> None:
        """Wrap `backend`; `source` names it in messages, `eos_token` is what its tokenizer_config.json says.

        Raises DataError where no token ends a document.
        """
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # a text that says "<|endoftext|>" is text
        self._backend = backend
        self.source = source
        self.eot_token = _find_eot(backend, source, eos_token)
        self.eot_id = _id_of(backend, self.eot_token)
        if _spells(backend, self.eot_token, self.eot_id):
            backend.add_special_tokens([self.eot_token])  # the file has it as a token like any other
        if _spells(backend, self.eot_token, self.eot_id):
            raise DataError(
                f"data.tokenizer = {source!r}: a text that says {self.eot_token!r} gets the token that ends documents. "
                "Name one that no text can spell as eos_token in the tokenizer_config.json beside the tokenizer.json."
            )
        self.n_tokens = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        content = json.loads(backend.to_str())
        self.token_bytes = exact_bytes(content, self.n_tokens)
        self.fingerprint = self._digest(content)
        # What stands around a text is not asked for here, and transformers writes it down in its own way.
        self.text_fingerprint = self._digest({k: v for k, v in content.items() if k != "post_processor"})

    n_tokens: int
    """The largest id + 1: the rows an embedding needs. There may be fewer tokens than that."""

    token_bytes: tuple[bytes, ...] | None
    """The UTF-8 bytes that each id stands for, b"" for special tokens, so that the bytes of a text's ids join to the
    text; None for a tokenizer that changes text or does not work on bytes."""

    fingerprint: str
    """SHA-256 of the tokenizer's canonical JSON, and of which token ends a document."""

    text_fingerprint: str
    """The same of what decides a text's ids, and of nothing else."""

    def _digest(self, content: dict[str, Any]) -> str:
        canonical = json.dumps(content, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(f"{self.eot_token}\n{canonical}".encode()).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without special tokens."""
        return [encoding.ids for encoding in self.encodings(texts)]

    def encodings(self, texts: Sequence[str]) -> list[Encoding]:
        """The same as `tokenizers` has it: every core is used, and other threads run on meanwhile."""
        # "fast" leaves out the character offsets, which nothing here reads
        return self._backend.encode_batch_fast(list(texts), add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens spelled out; bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json into `folder`, for `AutoTokenizer.from_pretrained`."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.eot_token,
            "eos_token": self.eot_token,
            "clean_up_tokenization_spaces": False,  # else decoding drops spaces before punctuation
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_tokenizer(folder_or_file: Path, *, source: str) -> Tokenizer:
    """The tokenizer of a folder that holds tokenizer.json, or of such a file.

    Raises DataError where it is missing, unreadable or damaged.
    """
    try:
        return _read_tokenizer(folder_or_file, source)
    except OSError as error:
        raise DataError(
            f"data.tokenizer = {source!r}: {error.filename} cannot be read: {error.strerror}. Check its permissions."
        ) from error


def _read_tokenizer(folder_or_file: Path, source: str) -> Tokenizer:
    path = folder_or_file / "tokenizer.json" if folder_or_file.is_dir() else folder_or_file
    if not path.is_file():
        held = ", ".join(sorted(entry.name for entry in path.parent.iterdir())[:8]) or "nothing"
        raise DataError(
            f"data.tokenizer = {source!r}: {path.parent} holds no tokenizer.json (it holds {held}). Give the folder or "
            "file of a fast tokenizer; `transformers` writes one with save_pretrained."
        )
    content = path.read_bytes()
    try:
        backend = Backend.from_str(content.decode("utf-8"))
    except Exception as error:  # tokenizers raises bare Exception for any fault in the file
        raise DataError(f"data.tokenizer = {source!r}: {path} is damaged or no tokenizer ({error}).") from error
    return Tokenizer(backend, source=source, eos_token=_configured_eos(path.parent / "tokenizer_config.json"))


def _configured_eos(path: Path) -> str | None:
    """``eos_token`` of a tokenizer_config.json, a string or an object with ``content``; None without the file."""
    if not path.is_file():
        return None
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))  # Any: somebody else's JSON
        token = config.get("eos_token")
        return token.get("content") if isinstance(token, dict) else token
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is not a tokenizer's configuration ({error}). Mend or remove it.") from error


def _find_eot(backend: Backend, source: str, eos_token: str | None) -> str:
    candidates = [*_END_OF_TEXT, *([eos_token] if eos_token else []), *_END_OTHERWISE]
    for token in candidates:
        if backend.token_to_id(token) is not None:
            return token
    raise DataError(
        f"data.tokenizer = {source!r}: no token ends a document; looked for {', '.join(candidates)}. Name it as "
        "eos_token in a tokenizer_config.json beside the tokenizer.json."
    )


def _id_of(backend: Backend, token: str) -> int:
    index = backend.token_to_id(token)
    assert index is not None, token
    return index


def _spells(backend: Backend, token: str, index: int) -> bool:
    """Whether a text that holds `token` gets its id."""
    texts = [token, f"a {token} b", f"a{token}b"]
    return any(index in each.ids for each in backend.encode_batch(texts, add_special_tokens=False))
