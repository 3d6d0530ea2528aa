"""`data prepare` and `data inspect`: what they print, what they refuse, and that a second call finds the cache."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colakit.data.tokenizer import Tokenizer

Run = Callable[..., Any]  # Any: conftest's Outcome, which cannot be imported from here

SMALL = ["--set", "model.seq_len=16", "--set", "train.max_steps=3", "--set", "data.val_fraction=0.1"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Forty documents, and the cache beside them."""
    rows = [json.dumps({"text": f"document {i}: " + "some words " * (1 + i % 20)}) + "\n" for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    return tmp_path / "a.jsonl"


@pytest.fixture
def data(colakit: Run, path: Path) -> Run:
    """Run a command of `colakit data` on the forty documents."""

    def run(command: str, *args: str) -> Any:
        cache = ["--set", f"data.cache_dir={path.parent / 'cache'}"]
        return colakit("data", command, "-p", "cola", "--smoke", "--data", str(path), *SMALL, *cache, *args)

    return run


def record_of(outcome: Any) -> dict[str, Any]:
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("\n") == 1
    record = json.loads(outcome.out, parse_constant=pytest.fail)
    assert (record["schema"], record["kind"]) == (1, "data")
    return dict(record)


@pytest.mark.parametrize("command", ["prepare", "inspect"])
def test_json_counts_what_there_is(data: Run, path: Path, command: str) -> None:
    record = record_of(data(command, "--json"))
    (source,) = record["sources"]
    assert source["documents"] + source["held_out_documents"] == 40
    assert source["held_out_documents"] >= 1
    assert (source["bad_records"], source["first_bad_records"], source["label"]) == (0, [], str(path))
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    assert source["text_bytes"] == sum(len(text) for text in texts)
    assert sum(each["documents"] for each in source["lengths"]) == 40
    assert sum(each["tokens"] for each in source["lengths"]) == source["train_tokens"] + source["held_out_tokens"]
    assert all(any(text.startswith(each["text"][:20]) for text in texts) for each in source["samples"])
    assert record["folder"] == str(path.parent / "cache")


def test_a_second_call_neither_reads_nor_tokenises(data: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = record_of(data("prepare", "--json"))

    def refuse(*_args: object) -> None:
        raise AssertionError("the cache was not used")

    monkeypatch.setattr(Tokenizer, "encodings", refuse)
    monkeypatch.setattr("colakit.data.own_bpe.train_bpe", refuse)
    assert record_of(data("inspect", "--json")) == first


def test_tables_for_people(data: Run) -> None:
    record = record_of(data("prepare", "--json"))
    (source,) = record["sources"]
    prepared, inspected = data("prepare"), data("inspect")
    for outcome in (prepared, inspected):
        assert outcome.code == 0
        rows = {line[:24].strip(): line[24:].split() for line in outcome.out.splitlines()}
        assert rows["training documents"][-1:] == [str(source["documents"])]
        assert rows["held-out documents"][-1:] == [str(source["held_out_documents"])]
    assert record["fingerprint"] in " ".join(prepared.out.split())
    assert "some words" in inspected.out
    assert "some words" not in prepared.out


def test_a_broken_line_ends_the_command_unless_it_shall_be_skipped(data: Run, path: Path) -> None:
    path.write_text(path.read_text() + "{broken\n" + '{"text": 3}\n')
    refused = data("prepare", "--json")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.count("a.jsonl, line 41: not valid JSON") == 1
    assert "Traceback" not in refused.err
    for _ in range(2):
        (source,) = record_of(data("prepare", "--on-bad-record", "skip", "--json"))["sources"]
        assert source["bad_records"] == 2
        lines = [message.split(": ")[0] for message in source["first_bad_records"]]
        assert lines == [f"{path}, line 41", f"{path}, line 42"]
    shown = " ".join(data("prepare", "--on-bad-record", "skip").out.split())
    assert "line 41: not valid JSON" in shown
    assert "line 42: 'text' is a number" in shown
    assert data("prepare", "--on-bad-record", "ignore").code == 2


@pytest.mark.parametrize("damage", ["shorter", "other bytes", "gone"])
def test_a_damaged_part_names_the_folder_to_remove(data: Run, path: Path, damage: str) -> None:
    data("prepare")
    (part,) = (path.parent / "cache" / "tokens").glob("*/part-00000.arrow")
    content = part.read_bytes()
    part.unlink()
    if damage != "gone":
        part.write_bytes(content[:-30] if damage == "shorter" else content[:-600] + bytes(100) + content[-500:])
    outcome = data("inspect", "--json")
    assert (outcome.code, outcome.out) == (2, "")
    message = " ".join(outcome.err.split())
    assert f"{part.parent} is damaged" in message.replace(" /", "/") or str(part.parent.name) in message
    assert "Remove it; it will be made anew" in message
    assert "Traceback" not in outcome.err


def test_faults_are_one_message(data: Run, path: Path) -> None:
    path.write_bytes(b'{"text": "caf\xe9"}\n')
    outcome = data("prepare")
    assert (outcome.code, outcome.out) == (2, "")
    assert "line 1: byte 0xe9 is not UTF-8" in " ".join(outcome.err.split())
    path.unlink()
    outcome = data("prepare")
    assert outcome.code == 2
    assert "no such file or folder" in " ".join(outcome.err.split())
    assert "Traceback" not in outcome.err


def test_a_run_on_data_that_has_changed_is_not_evaluated(colakit: Run, path: Path, tmp_path: Path) -> None:
    sets = {"data.cache_dir": tmp_path / "cache", "model.n_layers": 1, "model.d_model": 32, "model.n_heads": 2}
    sets |= {"model.rank": 4, "model.d_ff": 48, "train.batch_size": 2, "train.eval_tokens": 64}
    given = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    run = tmp_path / "run"
    trained = colakit("train", "-p", "cola", "--smoke", "--data", str(path), *SMALL, *given, "--out", str(run))
    assert trained.code == 0, trained.err
    assert colakit("eval", str(run), "--json").code == 0
    path.write_text(path.read_text().replace("document 3:", "document 3!"))
    outcome = colakit("eval", str(run), "--json")
    assert (outcome.code, outcome.out) == (2, "")
    assert "the data has changed since this run" in " ".join(outcome.err.split())
