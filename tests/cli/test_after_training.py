"""`colakit eval`, `generate` and `export`, as a user types them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from colakit.checkpoint.folders import Checkpoints
from colakit.config.load import resolve
from tests.cli.without_torch import answers_at_once
from tests.train.tiny_runs import SETS, make_config, run, write_corpus

Run = Callable[..., Any]  # Any: conftest's Outcome, which cannot be imported from here


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("after")
    run(folder / "run", make_config(write_corpus(folder / "poems.jsonl"), preset="cola-fan-dropout-muon"))
    return folder / "run"


@pytest.fixture
def copy(tiny_run: Path, tmp_path: Path) -> Path:
    """A run that a test may damage."""
    return shutil.copytree(tiny_run, tmp_path / "copy")


def evaluation(colakit: Run, *args: str) -> dict[str, Any]:
    outcome = colakit("eval", *args, "--json")
    assert outcome.code == 0, outcome.err
    record: dict[str, Any] = json.loads(outcome.out)
    assert (record["schema"], record["kind"]) == (1, "evaluation")
    return record


def test_a_run_a_checkpoint_and_an_export_are_evaluated(tiny_run: Path, tmp_path: Path, colakit: Run) -> None:
    summary = json.loads((tiny_run / "summary.json").read_text())
    whole = evaluation(colakit, str(tiny_run))
    assert whole["scores"]["loss"]["value"] == pytest.approx(summary["val_loss"], rel=1e-6)
    assert whole["scores"]["top1"]["value"] == pytest.approx(summary["accuracy"])
    assert (whole["step"], whole["is_held_out"], whole["sources"]) == (8, True, {})
    low, high = (whole["scores"]["loss"][end] for end in ("low", "high"))
    assert low < whole["scores"]["loss"]["value"] < high
    assert evaluation(colakit, str(tiny_run))["scores"] == whole["scores"], "two evaluations are identical"
    newest = tiny_run / "checkpoints" / "step-00000008"
    assert evaluation(colakit, str(newest))["scores"] == whole["scores"]
    early = evaluation(colakit, str(newest.with_name("step-00000002")))
    assert early["step"] == 2
    assert early["scores"]["loss"]["value"] > whole["scores"]["loss"]["value"]
    assert colakit("export", str(tiny_run), str(tmp_path / "out")).code == 0
    exported = evaluation(colakit, str(tmp_path / "out"))
    assert exported["scores"] == whole["scores"]
    assert (exported["step"], exported["preset"]) == (8, whole["preset"])


@pytest.mark.parametrize("size", ["1", "3", "7"])
def test_the_batch_changes_nothing(tiny_run: Path, colakit: Run, size: str) -> None:
    whole, split = evaluation(colakit, str(tiny_run)), evaluation(colakit, str(tiny_run), "--batch-size", size)
    assert split["batch_size"] == int(size) < whole["batch_size"]
    assert split["scores"]["loss"]["value"] == pytest.approx(whole["scores"]["loss"]["value"], rel=1e-6)


def test_the_whole_split_and_a_stride(tiny_run: Path, colakit: Run) -> None:
    part, whole = evaluation(colakit, str(tiny_run)), evaluation(colakit, str(tiny_run), "--all")
    assert part["scores"]["tokens"] <= 500
    assert whole["scores"]["tokens"] > 500
    near, far = (evaluation(colakit, str(tiny_run), "--all", "--stride", n) for n in ("2", "24"))
    assert near["scores"]["tokens"] == far["scores"]["tokens"] == whole["scores"]["tokens"] + 1
    assert near["scores"]["text_bytes"] == far["scores"]["text_bytes"]
    assert near["scores"]["documents"] == far["scores"]["documents"]
    assert near["scores"]["loss"]["value"] != far["scores"]["loss"]["value"]
    assert (near["stride"], near["seq_len"]) == (2, 24)


def test_shorter_windows_see_less(tiny_run: Path, colakit: Run) -> None:
    whole, short = evaluation(colakit, str(tiny_run)), evaluation(colakit, str(tiny_run), "--seq-len", "6")
    assert (whole["seq_len"], short["seq_len"]) == (24, 6)
    assert short["scores"]["loss"]["value"] > whole["scores"]["loss"]["value"]


def test_another_text_is_read_whole(tiny_run: Path, tmp_path: Path, colakit: Run) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("word1 and word2\n\nword3 and 4 and naïve\n", encoding="utf-8")
    record = evaluation(colakit, str(tiny_run), "--data", str(text), "--stride", "8")
    assert not record["is_held_out"]
    assert str(text) in record["data"]
    assert record["scores"]["text_bytes"] == len(text.read_bytes())
    assert record["scores"]["documents"] == 1
    assert record["scores"]["loss"]["low"] is None


def llama(folder: Path, tokenizer: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 30}
    LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    return folder


def test_another_model_is_compared_on_a_run_s_held_out_split(tiny_run: Path, tmp_path: Path, colakit: Run) -> None:
    other = llama(tmp_path / "llama", tiny_run / "tokenizer")
    outcome = colakit("eval", str(other))
    assert outcome.code == 2
    assert "does not say what it was trained on" in outcome.err
    assert "--data PATH|RUN" in outcome.err
    theirs = evaluation(colakit, str(other), "--data", str(tiny_run), "--stride", "20")
    ours = evaluation(colakit, str(tiny_run), "--stride", "20")
    assert theirs["is_held_out"]
    for key in ("text_bytes", "documents", "tokens"):
        assert theirs["scores"][key] == ours["scores"][key]
    assert 0 < ours["scores"]["bits_per_byte"]["value"] < theirs["scores"]["bits_per_byte"]["value"]
    for command in (["generate", str(other), "--prompt", "a"], ["export", str(other), str(tmp_path / "x")]):
        refused = colakit(*command)
        assert refused.code == 2
        assert "none of colakit's" in refused.err
    assert not (tmp_path / "x").exists()
    assert colakit("eval", str(other), "--spectrum", "--data", str(tiny_run)).code == 2


def test_another_model_is_scored_as_it_would_score_itself(tiny_run: Path, tmp_path: Path, colakit: Run) -> None:
    from transformers import AutoModelForCausalLM

    from colakit.data.tokenizer import read_tokenizer

    other = llama(tmp_path / "llama", tiny_run / "tokenizer")
    text = tmp_path / "mine.txt"
    text.write_text("word1 and word2, word3 and 4", encoding="utf-8")
    tokenizer = read_tokenizer(other, source="x")
    ids = [tokenizer.eot_id, *tokenizer.encode_batch([text.read_text()])[0], tokenizer.eot_id]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(other)(torch.tensor([ids])).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]))
    assert len(ids) < 30
    record = evaluation(colakit, str(other), "--data", str(text))
    assert record["scores"]["loss"]["value"] == pytest.approx(float(expected), rel=1e-5)
    assert (record["stride"], record["seq_len"], record["tokenizer"]) == (30, 30, str(other))


@pytest.mark.parametrize("how", ["data.attend_across_documents=false", 'data.packing="pad"'])
def test_a_text_is_read_as_the_run_read_its_own(tmp_path: Path, colakit: Run, how: str) -> None:
    """All that a run holds out, as a text of its own: the same documents, packed the same way."""
    corpus = write_corpus(tmp_path / "poems.jsonl")
    summary = run(tmp_path / "run", make_config(corpus, how, "data.val_fraction=0.5", "train.eval_tokens=100000"))
    held_out = evaluation(colakit, str(tmp_path / "run"))
    assert held_out["scores"]["loss"]["value"] == pytest.approx(summary.val_loss, rel=1e-6)
    from colakit.data.split import Side
    from colakit.train.saved import held_out_of, open_saved

    sides = held_out_of(open_saved(tmp_path / "run")).sources[0].sides
    lines = [line for line, side in zip(corpus.read_text().splitlines(), sides, strict=True) if side == Side.HELD_OUT]
    (tmp_path / "held.jsonl").write_text("\n".join(lines))
    record = evaluation(colakit, str(tmp_path / "run"), "--data", str(tmp_path / "held.jsonl"))
    assert record["scores"]["tokens"] == held_out["scores"]["tokens"]
    assert record["scores"]["loss"]["value"] == pytest.approx(held_out["scores"]["loss"]["value"], rel=1e-6)
    (tmp_path / "other.jsonl").write_text(json.dumps({"body": "word1 and 3"}) + "\nno json\n")
    more = ["--on-bad-record", "skip", "--set", 'data.text_field="body"']
    assert evaluation(colakit, str(tmp_path / "run"), "--data", str(tmp_path / "other.jsonl"), *more)["scores"][
        "tokens"
    ]


def test_a_run_whose_checkpoints_were_removed_has_its_model_still(copy: Path, colakit: Run) -> None:
    before = evaluation(colakit, str(copy))
    shutil.rmtree(copy / "checkpoints")
    after = evaluation(colakit, str(copy))
    assert (after["scores"], after["step"]) == (before["scores"], 8)
    shutil.rmtree(copy / "tokenizer")
    assert "the run's tokenizer, is missing. Copy it back" in " ".join(colakit("eval", str(copy)).err.split())
    (copy / "model.safetensors").unlink()
    assert "has no checkpoint" in colakit("eval", str(copy)).err


def test_a_diverged_model_is_told(copy: Path, colakit: Run) -> None:
    from safetensors.torch import load_file, save_file

    shutil.rmtree(copy / "checkpoints")
    tensors = load_file(copy / "model.safetensors")
    tensors["norm.weight"][:] = float("nan")
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    outcome = colakit("eval", str(copy))
    assert outcome.code == 2
    assert "outputs are not finite" in outcome.err


def test_sources_are_evaluated_apart(tmp_path: Path, colakit: Run) -> None:
    write_corpus(tmp_path / "poems.jsonl")
    numbers = [json.dumps({"text": " ".join(str(i * j % 97) for j in range(60))}) for i in range(40)]
    (tmp_path / "numbers.jsonl").write_text("\n".join(numbers))
    preset = tmp_path / "mixed.toml"
    preset.write_text(
        "[data]\nstages = [{ weights = { poems = 1.0, numbers = 1.0 } }]\n"
        + "".join(
            f'[data.sources.{name}]\nsource = "files"\npath = "{tmp_path / name}.jsonl"\n'
            for name in ("poems", "numbers")
        )
    )
    sets = [*SETS, 'data.tokenizer="bpe"', "train.eval_tokens=100000"]
    run(tmp_path / "run", resolve(str(preset), smoke_run=False, sets=sets).config)
    record = evaluation(colakit, str(tmp_path / "run"))
    parts = record["sources"]
    assert parts.keys() == {"poems", "numbers"}
    whole = record["scores"]
    for key in ("tokens", "text_bytes", "documents"):
        assert whole[key] == sum(part[key] for part in parts.values())
    weighted = sum(part["loss"]["value"] * part["tokens"] for part in parts.values()) / whole["tokens"]
    assert whole["loss"]["value"] == pytest.approx(weighted)
    shown = colakit("eval", str(tmp_path / "run"))
    assert "poems" in shown.out
    assert "numbers" in shown.out


def test_the_spectrum_is_shown_and_drawn(tiny_run: Path, tmp_path: Path, colakit: Run) -> None:
    outcome = colakit("eval", str(tiny_run), "--spectrum", "--plot", str(tmp_path / "s.svg"))
    assert outcome.code == 0, outcome.err
    assert "effective rank at 95 %" in outcome.out
    assert (tmp_path / "s.svg").read_text().startswith("<?xml")
    record = json.loads(colakit("eval", str(tiny_run), "--spectrum", "--json").out)
    assert record["kind"] == "spectrum"
    assert {place["block"] for place in record["places"]} == {0, 1}


def test_generation_streams_and_is_reproducible(tiny_run: Path, colakit: Run) -> None:
    options = [
        "generate",
        str(tiny_run),
        "--prompt",
        "word3 and",
        "--max-tokens",
        "20",
        "--top-k",
        "40",
        "--top-p",
        "0.9",
    ]
    record = json.loads(colakit(*options, "--json").out)
    assert (record["kind"], record["prompt"], record["step"], record["seed"]) == ("generation", "word3 and", 8, 0)
    assert record["tokens"] == 20 or record["ended"] == "end of text"
    again, other = (json.loads(colakit(*options, "--json", "--seed", seed).out)["text"] for seed in "01")
    assert record["text"] == again != other
    shown = colakit(*options)
    assert shown.out == f"word3 and{record['text']}\n"
    assert "tokens/s" in shown.err
    greedy = [*options[:6], "--json", "--temperature"]
    texts = [json.loads(colakit(*greedy, *how).out)["text"] for how in (["0"], ["0", "--seed", "1"], ["1e-40"])]
    assert len(set(texts)) == 1
    assert "read anew for every token" in colakit(*options[:4], "--max-tokens", "30").err


def test_generation_shows_whole_characters_and_stops_at_the_end_of_text(
    tiny_run: Path, colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colakit.data.tokenizer import read_tokenizer
    from colakit.evaluate import generate as module

    tokenizer = read_tokenizer(tiny_run / "tokenizer", source="x")
    ids = tokenizer.encode_batch(["né € 漢"])[0]
    assert len(ids) > len("né € 漢"), "characters in parts"
    monkeypatch.setattr(module, "generate", lambda *a, **k: iter([*ids, tokenizer.eot_id]))
    record = json.loads(colakit("generate", str(tiny_run), "--prompt", "a", "--json").out)
    assert (record["text"], record["ended"], record["tokens"]) == ("né € 漢", "end of text", len(ids) + 1)
    assert colakit("generate", str(tiny_run), "--prompt", "a").out == "ané € 漢\n"
    monkeypatch.setattr(module, "generate", lambda *a, **k: iter(ids[:-1]))
    record = json.loads(colakit("generate", str(tiny_run), "--prompt", "a", "--json").out)
    assert record["ended"] == "not finite"


def test_an_export_is_told(tiny_run: Path, tmp_path: Path, colakit: Run) -> None:
    outcome = colakit("export", str(tiny_run), str(tmp_path / "a"))
    assert "import colakit.hf" in outcome.out
    record = json.loads(colakit("export", str(tiny_run), str(tmp_path / "b"), "--standalone", "--json").out)
    assert record["is_standalone"]
    assert "lm.py" in record["files"]
    assert (tmp_path / "a" / "model.safetensors").stat().st_mode & 0o044, "others may read it too"
    assert colakit("export", str(tiny_run), str(tmp_path / "a")).code == 2


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no such folder": (["eval", "nowhere"], "nowhere: no such folder"),
    "a file": (["eval", "{run}/config.json"], "is a file. Give the folder of a run, a checkpoint or an exported model"),
    "no model": (["eval", "{tmp}"], "no run folder"),
    "no such checkpoint": (["eval", "{run}/checkpoints/step-00000099"], "no such folder"),
    "stride": (["eval", "{run}", "--stride", "25"], "--stride = 25: a window holds 24 tokens at most"),
    "window": (["eval", "{run}", "--seq-len", "25"], "--seq-len = 25: a window holds 24 tokens at most"),
    "no text": (["eval", "{run}", "--data", "nowhere.txt"], "nowhere.txt"),
    "data of no name": (["eval", "{run}", "--data", ""], "it names nothing"),
    "set beside data": (["eval", "{run}", "--data", "{run}", "--set", "data.path=x"], "says what its data is"),
    "set of a text": (["eval", "{run}", "--data", "{run}/data.json", "--set", "train.seed=1"], "as data.… says"),
    "greedy and top-k": (
        ["generate", "{run}", "--prompt", "a", "--temperature", "0", "--top-k", "3"],
        "Leave them out",
    ),
    "bytes": (["generate", "{run}", "--prompt", "\udcff"], "it is not UTF-8"),
    "no task": (["eval", "{run}", "--tasks", ""], "no task is named"),
    "stride of a spectrum": (["eval", "{run}", "--spectrum", "--stride", "3"], "not used with --spectrum"),
    "data of tasks": (["eval", "{run}", "--tasks", "a.yaml", "--data", "x"], "not used with --tasks"),
    "limit without tasks": (["eval", "{run}", "--limit", "3"], "not used without --tasks"),
    "plot of nothing": (["eval", "{run}", "--plot", "x.svg"], "Add --spectrum"),
    "plot": (["eval", "{run}", "--spectrum", "--plot", "x.pdf"], "ends in .svg or .png"),
    "empty prompt": (["generate", "{run}", "--prompt", ""], "nothing to go on from"),
    "long prompt": (["generate", "{run}", "--prompt", "word and " * 40], "and the model reads 24"),
    "no run": (["generate", "nowhere", "--prompt", "a"], "nowhere: no such folder"),
    "export of nothing": (["export", "{tmp}", "{tmp}/out"], "no run folder"),
    "export over something": (["export", "{run}", "{run}"], "exists and is not an empty folder"),
    "info": (["info", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_code_2(mistake: str, tiny_run: Path, tmp_path: Path, colakit: Run) -> None:
    words, message = MISTAKES[mistake]
    (tmp_path / "empty").mkdir()
    outcome = colakit(*(w.format(run=tiny_run, tmp=tmp_path / "empty") for w in words))
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())
    assert "Traceback" not in outcome.err
    assert outcome.out == ""


def test_damaged_and_half_written_checkpoints_are_told(copy: Path, colakit: Run) -> None:
    checkpoints = Checkpoints(copy / "checkpoints").all()
    (checkpoints[-1] / "model.safetensors").write_bytes(b"cut short")
    outcome = colakit("eval", str(copy))
    assert outcome.code == 2
    assert "is damaged: 9 bytes" in outcome.err
    assert str(checkpoints[-2]) in outcome.err.replace("\n", ""), "an older one is offered"
    assert evaluation(colakit, str(checkpoints[-2]))["step"] == 7
    (checkpoints[-2] / "manifest.json").unlink()
    outcome = colakit("generate", str(checkpoints[-2]), "--prompt", "a")
    assert outcome.code == 2
    assert "manifest.json is missing" in outcome.err
    half = checkpoints[-3].rename(checkpoints[-3].with_name(".step-00000006"))
    assert "was not finished" in colakit("eval", str(half)).err
    away = shutil.copytree(checkpoints[0], copy.parent / "step-00000001")
    assert "lies outside its run" in colakit("eval", str(away)).err


def test_a_tokenizer_that_does_not_match_is_told(copy: Path, colakit: Run) -> None:
    path = copy / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    n = len(tokenizer["model"]["vocab"])
    first = tokenizer["added_tokens"][0]
    tokenizer["added_tokens"] += [{**first, "id": n + i, "content": f"<{i}>"} for i in range(400 - n)]
    path.write_text(json.dumps(tokenizer))
    for command in (["eval"], ["generate", "--prompt", "a"], ["export", str(copy.parent / "out")]):
        outcome = colakit(command[0], str(copy), *command[1:])
        assert outcome.code == 2
        assert "its tokenizer has 400 tokens, and its model 320 rows" in " ".join(outcome.err.split())
    assert not (copy.parent / "out").exists()
    tokenizer["added_tokens"] = [first]
    a, b = (next(t for t, i in tokenizer["model"]["vocab"].items() if i == n) for n in (40, 41))
    tokenizer["model"]["vocab"] |= {a: 41, b: 40}
    path.write_text(json.dumps(tokenizer))
    outcome = colakit("generate", str(copy), "--prompt", "a")
    assert outcome.code == 2
    assert "holds another tokenizer than" in " ".join(outcome.err.split())


@pytest.mark.parametrize(
    "words", [["eval", "--help"], ["generate", "--help"], ["export", "--help"], ["info", "--help"]]
)
def test_help_answers_without_torch(words: list[str]) -> None:
    answers_at_once(words)
