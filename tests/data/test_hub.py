"""Datasets of the Hugging Face hub, read by processes of their own from a hub on this machine."""

import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from colakit.data.hub_find import _hub_builder
from tests.data.fake_hub import FakeHub, Repo
from tests.data.hub_process import Answer, Seen, jsonl, parquet, run, web_texts

WEB = {"dataset": "org/web", "dataset_config": "en"}
STREAM = {**WEB, "streaming": True}
JSONL = {"dataset": "org/Lines", "text_field": "content"}
CODE = {"dataset": "org/code", "dataset_config": "C"}
WEB_README = b"""---
configs:
- config_name: en
  data_files:
  - {split: train, path: en/train-*.parquet}
  - {split: test, path: en/test.parquet}
- config_name: de
  data_files: de/*.parquet
dataset_info:
- config_name: de
  features: [{name: text, dtype: string}]
  splits: [{name: train, num_examples: 2, num_bytes: 10}]
- config_name: en
  features: [{name: junk, dtype: string}, {name: text, dtype: string}, {name: id, dtype: string}]
---
"""
CODE_README = b"---\nconfigs:\n- {config_name: C, data_files: c.parquet}\n---\n"


def without_column(file: bytes, name: str) -> bytes:
    """The parquet file with what it stores of that column overwritten: whoever reads the column fails."""
    damaged = bytearray(file)
    metadata = pyarrow.parquet.read_metadata(io.BytesIO(file))
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for chunk in (row_group.column(i) for i in range(row_group.num_columns)):
            if chunk.path_in_schema == name:
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                damaged[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    return bytes(damaged)


def not_utf8() -> pyarrow.Array:
    """Strings as careless writers make them: "ok", half of a surrogate pair, "end"."""
    return pyarrow.array([b"ok", b"\xed\xa0\xbd", b"end"]).view(pyarrow.string())


def fill(hub: FakeHub) -> None:
    english = {"en/train-0.parquet": parquet(web_texts(0, 7), 3), "en/train-1.parquet": parquet(web_texts(7, 12))}
    rest = {"en/test.parquet": parquet(web_texts(90, 92)), "de/a.parquet": parquet({"text": ["eins", "zwei"]})}
    hub.put("org/web", Repo({"README.md": WEB_README, **english, **rest}))
    hub.put_next("org/web", Repo({"README.md": WEB_README, "en/train-0.parquet": parquet(web_texts(50, 51)), **rest}))
    mixed = {"README.md": WEB_README, "en/train-0.parquet": parquet({"text": ["one"], "x": [1]}), **rest}
    hub.put("org/mixed", Repo({**mixed, "README.md": WEB_README.partition(b"dataset_info")[0] + b"---\n"}))
    hub.put(
        "org/Lines",
        Repo(
            {
                "train.jsonl.gz": jsonl(
                    '{"content": "one", "id": 1, "x": 1}',
                    '{"content": null, "id": 2}',
                    '{"content": "  \\n ", "id": 3}',
                    '{"content": "four"}',
                )
            }
        ),
    )
    hub.put("org/wide", Repo({"a.parquet": without_column(parquet(web_texts(0, 5)), "junk")}))
    hub.put("org/once", Repo({"once.parquet": parquet(web_texts(0, 5))}))
    hub.put("org/broken", Repo({"a.parquet": parquet({"text": not_utf8(), "n": [1, 2, 3]})}))
    hub.put("org/torn", Repo({"a.parquet": parquet(web_texts(0, 5))[:-30]}))
    hub.put("org/script", Repo({"README.md": b"", "script.py": b"import datasets"}))
    hub.put("org/empty", Repo({"README.md": b"nothing"}))
    hub.put("org/gated", Repo({"a.parquet": parquet({"text": ["secret"]})}, gated="all"))
    hub.put("org/closed", Repo({"README.md": b"open", "a.parquet": parquet({"text": ["secret"]})}, gated="files"))
    code = {
        "blob_id": ["b0", "b1", "gone", "b3", None, "b5", "b6"],
        "src_encoding": ["UTF-8", "ISO-8859-1", "UTF-8", "UTF-8", "UTF-8", "klingon", "UTF-8"],
        "repo_name": ["u/r", "u/r", "u/r", "u/#s", "u/r", "u/r", None],
        "path": ["/a.c", "/b.c", "/c.c", "/x #1.c", "/d.c", "/e.c", "/f.c"],
        "score": [1.0] * 7,
    }
    hub.put("org/code", Repo({"README.md": CODE_README, "c.parquet": parquet(code, 2)}))
    for name, text in (("b0", b"zero"), ("b1", b"caf\xe9"), ("b3", b"thr\xffee"), ("b5", b"five"), ("b6", b"six")):
        hub.put_blob(name, text)
    hub.put("org/slow", Repo({"a.parquet": parquet({"blob_id": ["b0", "down"], "src_encoding": ["UTF-8"] * 2})}))
    hub.failures = {"/content/b1": [503, 500], "/content/down": [503] * 9}


@dataclass
class World:
    hub: FakeHub
    first_commit: str
    online: Seen
    offline: Seen
    unplugged: Seen


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """What three processes saw: with the hub, with HF_HUB_OFFLINE (the hub could be asked), and with the hub gone."""
    cache, hub = tmp_path_factory.mktemp("huggingface"), FakeHub()
    fill(hub)
    first = hub.repos["org/web"].commit
    with hub.serving():
        online = run(online_jobs(hub.url, first), url=hub.url, cache=cache)
        asked = hub.asked.total()
        forge_copies(cache / "datasets" / "org___once")
        offline = run(offline_jobs(first), url=hub.url, cache=cache, HF_HUB_OFFLINE="1")
        offline.asked = hub.asked.total() - asked
    unplugged = run(offline_jobs(first), url=hub.url, cache=cache)
    return World(hub, first, online, offline, unplugged)


def forge_copies(folder: Path) -> None:
    """Newer copies that nobody asked for: a half-prepared one, and one made with arguments of its own."""
    (whole,) = folder.glob("default/0.0.0/*/dataset_info.json")
    other = folder / "default-0123456789abcdef" / "0.0.0" / whole.parent.name
    for copy in (whole.parent.with_suffix(".incomplete"), other):
        shutil.copytree(whole.parent, copy)
        os.utime(copy, (2e9, 2e9))


def online_jobs(url: str, commit: str) -> dict[str, Any]:
    pinned = {"source": {**WEB, "dataset": f"org/web@{commit}"}}
    return {
        "stream": {"source": STREAM, "twice": True},
        "stream, cut short": {"source": STREAM, "take": 2},
        "stream behind 5": {"source": STREAM, "skip": 5},
        "stream behind all": {"source": STREAM, "skip": 99},
        "download": {"source": WEB},
        "download behind 5": {"source": WEB, "skip": 5},
        "download behind all": {"source": WEB, "skip": 99},
        "stream of what is downloaded": {"source": STREAM},
        "download, cut short": {"source": WEB, "take": 2},
        "other split": {"source": {**WEB, "dataset_split": "test"}},
        "other configuration": {"source": {**STREAM, "dataset_config": "de"}},
        "no configuration": {"source": {"dataset": "org/web"}},
        "wrong configuration": {"source": {**WEB, "dataset_config": "fr"}},
        "wrong split": {"source": {**WEB, "dataset_split": "dev"}},
        "wrong revision": {"source": {**WEB, "dataset": "org/web@nothing"}},
        "next commit": {"source": WEB, "post": f"{url}/advance/org/web"},
        "pinned": pinned,
        "lines": {"source": JSONL, "twice": True},
        "lines, streamed": {"source": {**JSONL, "streaming": True}},
        "lines, failing": {"source": JSONL, "fails": True},
        "no column": {"source": {**JSONL, "text_field": "text"}},
        "no column, streamed": {"source": {"dataset": "org/Lines", "streaming": True}},
        "column of numbers": {"source": {**JSONL, "text_field": "id"}},
        "two columns of many": {"source": {"dataset": "org/wide", "streaming": True}},
        "once": {"source": {"dataset": "org/once"}},
        "once more": {"source": {"dataset": "org/once"}},
        "once more, streamed": {"source": {"dataset": "org/once", "streaming": True}},
        "not UTF-8": {"source": {"dataset": "org/broken", "streaming": True}},
        "torn": {"source": {"dataset": "org/torn"}},
        "torn, streamed": {"source": {"dataset": "org/torn", "streaming": True}},
        "different columns": {"source": {**WEB, "dataset": "org/mixed"}},
        "different columns, streamed": {"source": {**STREAM, "dataset": "org/mixed"}},
        "script": {"source": {"dataset": "org/script"}},
        "empty": {"source": {"dataset": "org/empty"}},
        "gated": {"source": {"dataset": "org/gated"}},
        "gated behind its README": {"source": {"dataset": "org/closed"}},
        "unknown": {"source": {"dataset": "org/nothing"}},
        "no name": {"source": {"dataset": "../my/texts"}},
        "code": {"source": CODE},
        "code, cut short": {"source": CODE, "take": 2},
        "code, streamed behind 3": {"source": {**CODE, "streaming": True}, "skip": 3},
        "blobs of a failing archive": {"source": {"dataset": "org/slow"}},
    }


def offline_jobs(commit: str) -> dict[str, Any]:
    return {
        "cached": {"source": WEB},
        "cached, streamed": {"source": STREAM},
        "cached, pinned": {"source": {**WEB, "dataset": f"org/web@{commit}"}},
        "cached split": {"source": {**WEB, "dataset_split": "test"}},
        "cached, of several copies": {"source": {"dataset": "org/once"}},
        "never asked for": {"source": {**WEB, "dataset_config": "de"}},
        "never asked for, streamed": {"source": {"dataset": "org/other", "streaming": True}},
        "wrong split": {"source": {**WEB, "dataset_split": "dev"}},
        "code": {"source": CODE},
    }


@pytest.fixture
def online(world: World) -> dict[str, Answer]:
    return world.online.answers


ALL = [[f"text {i}", f"<{i}>"] for i in range(12)]


def test_a_stream_and_a_download_hold_the_same_documents_in_the_same_order(online: dict[str, Answer]) -> None:
    for name in ("stream", "download", "stream of what is downloaded"):
        assert online[name]["documents"] == ALL, name
        assert online[name]["rows"] == list(range(1, 13))
        assert online[name]["error"] is None
        assert online[name]["identity"] == online["stream"]["identity"]


def test_what_is_in_the_cache_is_not_fetched_again(world: World) -> None:
    for name in ("once", "once more", "once more, streamed"):
        assert world.online.answers[name]["documents"] == ALL[:5]
    assert world.hub.sent["once.parquet"] == len(world.hub.repos["org/once"].files["once.parquet"])


def test_skip_leaves_out_that_many_rows(online: dict[str, Answer]) -> None:
    for name in ("stream", "download"):
        assert online[f"{name} behind 5"]["documents"] == ALL[5:], name
        assert online[f"{name} behind 5"]["rows"] == list(range(6, 13))
        assert online[f"{name} behind all"]["documents"] == []
        assert online[f"{name} behind all"]["error"] is None


def test_reading_can_stop_at_any_document(online: dict[str, Answer]) -> None:
    for name in ("stream", "download", "code"):
        assert online[f"{name}, cut short"]["documents"] == online[name]["documents"][:2]
        assert online[f"{name}, cut short"]["error"] is None


def test_the_identity_tells_commit_configuration_split_and_field(world: World) -> None:
    online = world.online.answers
    assert online["stream"]["identity"] == (
        f"hf://datasets/org/web@{world.first_commit}, configuration en, split train, text_field text"
    )
    assert online["lines"]["identity"].endswith(", configuration default, split train, text_field content")
    assert ", split test," in online["other split"]["identity"]
    assert ", configuration de," in online["other configuration"]["identity"]
    assert all(online[name]["is_replayable"] for name in ("stream", "download", "lines"))


def test_a_new_commit_is_read_and_the_old_one_where_it_is_asked_for(world: World) -> None:
    online = world.online.answers
    assert online["next commit"]["documents"] == [["text 50", "<50>"]]
    assert world.hub.repos["org/web"].commit in online["next commit"]["identity"]
    assert online["pinned"]["documents"] == ALL
    assert world.first_commit in online["pinned"]["identity"]
    assert online["wrong revision"]["error"].startswith("the dataset org/web has no such revision.")


def test_null_texts_are_bad_records_and_blank_ones_are_left_out(online: dict[str, Answer]) -> None:
    for name in ("lines", "lines, streamed"):
        assert online[name]["documents"] == [["one", "1"], ["four", None]], name
        assert online[name]["rows"] == [1, 4]
        assert online[name]["bad"] == ["org/Lines, row 1: 'content' is null. Drop the row, or write an empty string."]
    assert online["lines, failing"]["documents"] == [["one", "1"]]
    assert online["lines, failing"]["error"] == online["lines"]["bad"][0]


def test_half_of_a_surrogate_pair_is_a_bad_record(online: dict[str, Answer]) -> None:
    assert [text for text, _ in online["not UTF-8"]["documents"]] == ["ok", "end"]
    assert [error.partition(" (")[0] for error in online["not UTF-8"]["bad"]] == [
        "org/broken, row 1: 'text' is not UTF-8"
    ]


def test_a_stream_reads_no_other_columns(online: dict[str, Answer]) -> None:
    assert online["different columns, streamed"]["documents"] == [["one", None]]
    assert online["two columns of many"]["documents"] == ALL[:5]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("no configuration", ("has several configurations: 'en', 'de'.", "--set data.dataset_config=en")),
        ("wrong configuration", ("no configuration 'fr', but 'en', 'de'.", "--set data.dataset_config=en")),
        ("wrong split", ("configuration en, has no split 'dev', but 'train', 'test'.", "--set data.dataset_split=")),
        ("no column", ("no column 'text', but 'content', 'id', 'x'.", "--set data.text_field=content")),
        ("no column, streamed", ("no column 'text', but 'content', 'id', 'x'.", "--set data.text_field=content")),
        ("column of numbers", ("column 'id' of the dataset org/Lines is of type int64", "--set data.text_field=")),
        ("torn", ("org/torn holds data that cannot be read (Parquet magic bytes not found",)),
        ("torn, streamed", ("org/torn holds data that cannot be read (Parquet magic bytes not found",)),
        ("different columns", ("holds files with different columns", "--set data.streaming=true")),
        ("script", ("made by a script (script.py)", "--data PATH")),
        ("empty", ("holds no data files",)),
        ("gated", ("is gated.", "https://huggingface.co/datasets/org/gated", "hf auth login", "HF_TOKEN")),
        ("gated behind its README", ("is gated.", "https://huggingface.co/datasets/org/closed")),
        ("unknown", ("org/nothing is not on the Hugging Face hub, or is private.", "HF_TOKEN")),
        ("no name", ("../my/texts", "OWNER/NAME", "--data PATH")),
        (
            "blobs of a failing archive",
            ("Software Heritage's archive cannot be read", "/content/down: HTTP status 503)", "--data PATH"),
        ),
    ],
)
def test_each_fault_is_one_error_that_says_what_to_do(
    online: dict[str, Answer], name: str, parts: tuple[str, ...]
) -> None:
    error = online[name]["error"]
    assert error is not None
    assert all(part in error for part in parts), error
    assert "\n" not in error
    assert online[name]["bad"] == []


def test_the_libraries_say_nothing_themselves(world: World) -> None:
    """Standard output is checked where the answers are read from it."""
    assert world.online.stderr == ""


def test_code_is_fetched_in_order_under_its_repository(online: dict[str, Answer]) -> None:
    """b1 is refused twice before it is given out; b3 is not quite UTF-8."""
    assert online["code"]["documents"] == [
        ["zero", "u/r#/a.c"],
        ["café", "u/r#/b.c"],
        ["thr\ufffdee", "u/%23s#/x%20%231.c"],
        ["six", "b6"],
    ]
    assert online["code"]["rows"] == [1, 2, 4, 7]
    gone, null, klingon = online["code"]["bad"]
    assert gone.startswith("org/code, row 2: Software Heritage does not give it out (HTTP status 404: ")
    assert null == "org/code, row 4: 'blob_id' is None, not a name. Drop the row."
    assert klingon.startswith("org/code, row 5: the blob b5 cannot be decoded as 'klingon' (")


def test_code_is_streamed_from_any_row(online: dict[str, Answer]) -> None:
    whole, rest = online["code"], online["code, streamed behind 3"]
    assert rest["documents"] == whole["documents"][2:]
    assert rest["bad"] == whole["bad"][1:]


@pytest.mark.parametrize("when", ["offline", "unplugged"])
def test_without_the_hub_the_newest_copy_in_the_cache_is_read(world: World, when: str) -> None:
    answers = getattr(world, when).answers
    for name in ("cached", "cached, streamed"):
        assert answers[name]["documents"] == [["text 50", "<50>"]]
        assert answers[name]["identity"] == world.online.answers["next commit"]["identity"]
    assert answers["cached, of several copies"]["identity"] == world.online.answers["once"]["identity"]
    assert answers["cached, of several copies"]["documents"] == world.online.answers["once"]["documents"]
    assert answers["cached, pinned"]["documents"] == ALL
    assert answers["cached, pinned"]["identity"] == world.online.answers["download"]["identity"]
    assert answers["cached split"]["documents"] == world.online.answers["other split"]["documents"]
    assert f"Reading revision {world.first_commit} from the cache." in getattr(world, when).stderr


@pytest.mark.parametrize("when", ["offline", "unplugged"])
def test_without_the_hub_and_a_copy_there_is_one_quick_error(world: World, when: str) -> None:
    answers, reason = getattr(world, when).answers, {"offline": "offline mode is set", "unplugged": "refused"}[when]
    for name in ("never asked for", "never asked for, streamed"):
        answer = answers[name]
        for part in (reason, "--data PATH", "data.source=stdlib", "data.tokenizer=bpe", "HF_DATASETS_CACHE", "HF_HOME"):
            assert part in answer["error"], answer["error"]
        assert "\n" not in answer["error"]
        assert answer["seconds"] < 5
    assert "has no split 'dev', but 'train', 'test'" in answers["wrong split"]["error"]
    assert answers["code"]["error"].startswith("Software Heritage's archive cannot be read (")
    assert answers["code"]["seconds"] < 5


def test_offline_mode_asks_nothing(world: World) -> None:
    assert world.offline.asked == 0


def test_another_commit_of_the_cache_is_not_taken_for_the_one_the_hub_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` does where the hub stops answering between two questions."""
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *_, **__: SimpleNamespace(hash="old"))
    assert _hub_builder("org/web", "old", None).hash == "old"
    with pytest.raises(ConnectionError, match="the hub stopped answering"):
        _hub_builder("org/web", "new", None)
