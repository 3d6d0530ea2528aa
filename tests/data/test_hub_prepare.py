"""From a dataset of the hub to blocks: downloaded or streamed, interrupted, and with the hub gone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from colakit.config.schema import DataConfig, SourceConfig
from colakit.data.bpe import train_bpe
from colakit.data.document import fail
from colakit.data.hub import HubDataset
from colakit.data.hub_reader import HubReader
from colakit.data.meter import Meter
from colakit.data.prepare import prepare
from colakit.errors import DataError
from tests.data.fake_hub import FakeHub, Repo
from tests.data.hub_process import Seen, jsonl, parquet, run, web_texts

N = 40


@dataclass
class World:
    root: Path
    online: Seen
    unplugged: Seen


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root, hub = tmp_path_factory.mktemp("world"), FakeHub()
    train_bpe([text or "" for text in web_texts(0, N)["text"]], 280).save(root / "tokenizer")
    hub.put("org/web", Repo({"a.parquet": parquet(web_texts(0, 25)), "b.parquet": parquet(web_texts(25, N))}))
    hub.put_next("org/web", Repo({"a.parquet": parquet(web_texts(0, 30))}))
    hub.put("org/flow", Repo({"a.parquet": parquet(web_texts(0, N))}))
    hub.put("org/bad", Repo({"a.jsonl.gz": jsonl(*(f'{{"text": "text {i}"}}' for i in range(20)), '{"text": null}')}))
    with hub.serving():
        online = run(online_jobs(root, hub.url), url=hub.url, cache=root / "huggingface")
    unplugged = run(unplugged_jobs(root), url=hub.url, cache=root / "huggingface")
    return World(root, online, unplugged)


def job(root: Path, cache: str, dataset: str = "org/web", parts: int | None = None, **options: Any) -> dict[str, Any]:
    common = {"tokenizer": str(root / "tokenizer"), "cache_dir": str(root / cache), "val_fraction": 0.2}
    return {"prepare": {"dataset": dataset, **common, **options}, "parts": parts}


def online_jobs(root: Path, url: str) -> dict[str, Any]:
    return {
        "streamed": job(root, "one", streaming=True),
        "streamed, interrupted": job(root, "two", streaming=True, parts=3),
        "streamed, resumed": job(root, "two", streaming=True),
        "bad": job(root, "one", "org/bad"),
        "bad, skipped": job(root, "one", "org/bad", on_bad_record="skip"),
        "another commit": {**job(root, "one", streaming=True), "post": f"{url}/advance/org/web"},
        "flow": job(root, "one", "org/flow", streaming=True),
        "flow, interrupted": job(root, "two", "org/flow", streaming=True, parts=3),
        "downloaded, interrupted": job(root, "three", parts=2),
        "downloaded, resumed": job(root, "three"),
    }


def unplugged_jobs(root: Path) -> dict[str, Any]:
    return {
        "flow": job(root, "one", "org/flow", streaming=True),
        "flow, interrupted": job(root, "two", "org/flow", streaming=True),
        "never streamed": job(root, "three", "org/flow", streaming=True),
    }


def test_a_stream_is_tokenised_once_and_goes_on_where_it_was_interrupted(world: World) -> None:
    online = world.online.answers
    assert online["streamed"]["error"] is None
    assert online["streamed"]["documents"] + online["streamed"]["held_out_documents"] == N
    assert online["streamed, interrupted"] == {"error": ""}
    assert online["streamed, resumed"] == online["streamed"]
    complete = [{path.parent.name for path in (world.root / name).rglob("done.json")} for name in ("one", "two")]
    (streamed,) = complete[0] & complete[1]
    parts = [sorted((world.root / cache / "tokens" / streamed).glob("part-*")) for cache in ("one", "two")]
    assert len(parts[0]) > 4
    assert [part.read_bytes() for part in parts[0]] == [part.read_bytes() for part in parts[1]]


def test_the_hub_gives_the_blocks_that_local_files_give(world: World) -> None:
    """They follow from texts and ids, not from how those came."""
    folder = world.root / "local"
    folder.mkdir()
    (folder / "a.parquet").write_bytes(parquet(web_texts(0, N)))
    config = DataConfig(**{**job(world.root, "local_cache")["prepare"], "source": "files", "path": str(folder)})
    data = prepare(config.model_copy(update={"dataset": None}), seq_len=4, vocab_size=300)
    blocks = {"train": data.train["data"], "held_out": data.held_out}
    for side, each in blocks.items():
        assert [each[i].tolist() for i in range(len(each))] == world.online.answers["streamed"]["blocks"][side]


def test_a_download_that_was_interrupted_is_resumed_and_another_commit_is_other_data(world: World) -> None:
    online = world.online.answers
    assert online["downloaded, resumed"] == online["another commit"]
    assert online["another commit"]["documents"] + online["another commit"]["held_out_documents"] == 30
    assert online["another commit"]["fingerprint"] != online["streamed"]["fingerprint"]


def test_bad_rows_of_the_hub_fail_or_are_counted(world: World) -> None:
    online = world.online.answers
    assert online["bad"]["error"].startswith("org/bad, row 20: 'text' is null.")
    assert online["bad"]["error"].endswith("--on-bad-record skip.")
    assert online["bad, skipped"]["bad_records"] == 1
    assert online["bad, skipped"]["documents"] + online["bad, skipped"]["held_out_documents"] == 20


def test_without_the_hub_what_a_stream_was_tokenised_to_is_found(world: World) -> None:
    """`datasets` keeps nothing of a stream, but colakit has its tokens."""
    unplugged = world.unplugged.answers
    assert unplugged["flow"] == world.online.answers["flow"]
    assert unplugged["flow"]["error"] is None
    assert "Looking for what was prepared of hf://datasets/org/flow@" in world.unplugged.stderr
    for name in ("flow, interrupted", "never streamed"):
        assert "cannot be had from the Hugging Face hub" in unplugged[name]["error"]


def test_rows_of_another_commit_are_never_read_for_those_that_were_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub was gone when it was asked for the commit, and is back when the rows are read."""
    commits: list[str | None] = ["first", None, "second"]

    def identity(_self: HubDataset) -> str:
        commit = commits.pop(0)
        if commit is None:
            raise DataError("no network")
        return commit

    monkeypatch.setattr(HubDataset, "identity", identity)
    monkeypatch.setattr(HubDataset, "is_replayable", True)
    config = SourceConfig(source="hub", dataset="org/web")
    assert HubReader(config, tmp_path).identity() == "first"
    reader = HubReader(config, tmp_path)
    assert (reader.identity(), reader.is_replayable) == ("first", True)
    with pytest.raises(DataError, match="is second by now, not first"):
        next(reader.read(fail, (0, 0), Meter()))


@pytest.mark.parametrize(
    "other", [{"dataset": "org/other"}, {"dataset_config": "de"}, {"dataset_split": "test"}, {"text_field": "body"}]
)
def test_what_is_remembered_of_one_choice_is_not_recalled_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, str]
) -> None:
    def identity(_self: HubDataset) -> str:
        raise DataError("no network")

    monkeypatch.setattr(HubDataset, "is_replayable", True)
    with monkeypatch.context() as patch:
        patch.setattr(HubDataset, "identity", lambda _self: "first")
        HubReader(SourceConfig(source="hub", dataset="org/web"), tmp_path).identity()
    monkeypatch.setattr(HubDataset, "identity", identity)
    assert HubReader(SourceConfig(source="hub", dataset="org/web"), tmp_path).identity() == "first"
    with pytest.raises(DataError, match="no network"):
        HubReader(SourceConfig(source="hub", **{"dataset": "org/web", **other}), tmp_path).identity()  # type: ignore[arg-type]
