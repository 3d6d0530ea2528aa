"""`colakit info` as a user types it, without torch."""

import json
import re
import shutil
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from colakit.checkpoint.folders import verify
from colakit.errors import CheckpointError
from tests.cli.without_torch import answers_at_once
from tests.train.tiny_runs import make_config, run, write_corpus

Run = Callable[..., Any]  # Any: conftest's Outcome, which cannot be imported from here


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run in ``runs/mine`` and somebody's model in ``other``."""
    folder = tmp_path_factory.mktemp("made")
    run(folder / "runs" / "mine", make_config(write_corpus(folder / "poems.jsonl"), "train.keep_last=2"))
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text('{"model_type": "gpt\\u001b[31m2", "architectures": ["GPT2"]}')
    save_file({"h.0.w": torch.zeros(3, 5), "h.1.w": torch.zeros(3, 5)}, folder / "other" / "model.safetensors")
    return folder


@pytest.fixture(autouse=True)
def there(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made once is not to be changed."""
    monkeypatch.chdir(made)


@pytest.mark.parametrize(
    "args",
    [["runs/mine"], ["runs/mine", "--json", "--tensors"], ["runs/mine/checkpoints/step-00000008"], ["other"]],
    ids=" ".join,
)
def test_it_never_imports_torch(args: list[str]) -> None:
    answers_at_once(["info", *args])


def rows(out: str) -> dict[str, str]:
    """What the first table says: its title and a blank line, then names and values, then a blank line."""
    found = (re.fullmatch(r" (\S.*?) {2,}(\S.*?) *", line) for line in takewhile(str.strip, out.splitlines()[2:]))
    return {row[1]: row[2] for row in found if row is not None}


def test_a_run_is_shown_with_its_checkpoints(colakit: Run) -> None:
    outcome = colakit("info", "runs/mine")
    assert (outcome.code, outcome.err) == (0, "")
    record = json.loads(colakit("info", "runs/mine", "--json").out)
    shown, t = rows(outcome.out), record["training"]
    assert outcome.out.startswith("run runs/mine")
    parameters = record["parameters"]
    assert parameters == record["expected_parameters"]
    expected = {
        "preset": "cola-fan-dropout-muon",
        "state": "finished, step 8 of 8",
        "last loss": f"{t['last_loss']:.4f} nats/token",
        "validation loss": f"{t['evaluation']['val_loss']:.4f} nats/token at step 8",
        "best of them": f"{t['best_loss']:.4f} nats/token at step {t['best_step']}",
        "layers": "cola, rank d_in // 4",
        "fan": "qkv 0.15",
        "norm": "hybrid, of q, k, v: rms",
        "sizes": "d_model 32, 2 blocks, 4 heads (4 of keys), d_ff 48",
        "vocabulary": "320, head its own",
        "sequence": "24 tokens",
        "parameters": f"{parameters:,} ({parameters / 1000:.1f}k)",
        "weights": "F32",
        "tokenizer": "bpe, 264 tokens",
        "optimizer": "muon, lr 0.008 after 2 steps, weight decay 0.01, batch 4",
        "data": str(Path("poems.jsonl").absolute()),
        "fingerprint": record["data_fingerprint"],
        "written": record["written"],
    }
    assert shown.items() >= expected.items()
    assert list(shown) == [
        *("preset", "state", "last loss", "validation loss", "best of them", "time"),
        *("layers", "fan", "norm", "sizes", "vocabulary", "sequence", "parameters", "weights", "tokenizer"),
        *("optimizer", "data", "fingerprint", "machine", "versions", "git commit", "written"),
    ]
    assert f"torch {torch.__version__}" in shown["versions"]
    assert re.search(r"\n +8 +0\.3 +of the sizes written +runs/mine/checkpoints/step-00000008", outcome.out)
    assert "\ntensors" not in outcome.out
    each = colakit("info", "runs/mine", "--tensors").out
    assert re.search(r"\n blocks\.1\.mlp\.down_proj\.a +F32 +12×48 +1 +576 ", each)


def test_a_checkpoint_is_shown_with_its_tensors(colakit: Run) -> None:
    path = "runs/mine/checkpoints/step-00000007"
    out = colakit("info", path).out
    assert out.startswith(f"checkpoint {path}")
    assert rows(out)["state"] == "step 7 of 8"
    assert re.search(r"\n blocks\.\*\.mlp\.down_proj\.a +F32 +12×48 +2 +1,152 ", out)
    assert json.loads(colakit("info", path, "--json").out).items() >= {"schema": 1, "kind": "info"}.items()


def test_another_model_is_shown_by_what_it_tells(colakit: Run) -> None:
    """And a terminal is told nothing by it."""
    out = colakit("info", "other").out
    assert out.startswith("model for transformers other")
    shown = rows(out)
    shown.pop("written")
    assert shown == {
        "model type": r"gpt\x1b[31m2",
        "architecture": "GPT2",
        "parameters": "30 (30)",
        "weights": "F32",
        "tokenizer": "n/a",
    }
    assert re.search(r"\n h\.\*\.w +F32 +3×5 +2 +30 ", out)


def test_what_is_missing_is_not_available(colakit: Run, tmp_path: Path) -> None:
    """Of an export without its configuration, and of a run that has saved nothing yet."""
    shutil.copytree("other", tmp_path / "export")
    (tmp_path / "export" / "config.json").write_text('{"model_type": "colakit", "tie_embeddings": true, "rank": 5}')
    shown = rows(colakit("info", str(tmp_path / "export")).out)
    assert shown["state"] == "step n/a of n/a"
    assert shown["sizes"] == "d_model n/a, n/a blocks, n/a heads (n/a of keys), d_ff n/a"
    assert (shown["layers"], shown["fan"], shown["norm"]) == ("n/a", "n/a", "n/a, of q, k, v: n/a")
    assert (shown["vocabulary"], shown["optimizer"], shown["data"]) == ("n/a, head tied", "n/a", "n/a")
    shutil.copytree("runs/mine", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    for name in ("model.safetensors", "metrics.jsonl", "environment.json"):
        (tmp_path / "run" / name).unlink()
    out = colakit("info", str(tmp_path / "run"), "--tensors").out
    shown = rows(out)
    assert re.fullmatch(r"[\d,]+ \([\d.]+k\) by its configuration", shown["parameters"])
    assert shown["weights"] == "none saved yet"
    for name in ("last loss", "validation loss", "best of them", "time", "machine", "versions", "git commit"):
        assert shown[name] == "n/a", name
    assert "\ncheckpoints" not in out
    assert "\ntensors" not in out


def test_what_does_not_fit_is_told(colakit: Run, tmp_path: Path) -> None:
    """A file of another size in the table; one of the same size and other content is the business of `verify`."""
    path = shutil.copytree("runs/mine/checkpoints/step-00000008", tmp_path / "step-00000008")
    content = (path / "optimizer.safetensors").read_bytes()
    (path / "optimizer.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="not what was written"):
        verify(path)
    assert "of the sizes written" in colakit("info", str(path)).out
    (path / "optimizer.safetensors").write_bytes(content[:-1])
    save_file({"w": torch.zeros(3, 5)}, path / "model.safetensors")
    out = colakit("info", str(path)).out
    assert re.search(r"\n +8 +\d\.\d +model\.safetensors has \d+ bytes, not the [\d,]+ written +/", out)
    assert re.search(r"parameters +15 \(15\) in the file, but [\d,]+ by its configuration", out)


@pytest.mark.parametrize("args", [["nowhere"], ["runs"], ["poems.jsonl"], ["runs/mine/tokenizer"]], ids=" ".join)
@pytest.mark.parametrize("option", [[], ["--json"], ["--tensors"]], ids=" ".join)
def test_what_is_none_of_them_is_one_message_and_exit_2(colakit: Run, args: list[str], option: list[str]) -> None:
    outcome = colakit("info", *args, *option)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"Error: {args[0]}")
    assert " Give " in outcome.err
    assert "Traceback" not in outcome.err


def test_the_help_says_what_is_compared(colakit: Run) -> None:
    help_text = " ".join(colakit("info", "--help").out.replace("│", " ").split())
    assert "by the sizes of their files. Their contents are not" in help_text
    assert "RUN|CHECKPOINT|FOLDER" in help_text
