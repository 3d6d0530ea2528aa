"""Every preset trains from the command line as CI does it: ``--smoke``, five steps, JSON, no terminal."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from colakit.cli.app import main
from colakit.config.presets import preset_names


def colakit(*arguments: str, cwd: Path, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "colakit", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_trains_in_a_smoke_run(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, which spares twelve times the imports; the tests below start processes of their own."""
    monkeypatch.chdir(tmp_path)
    sets = ("train.max_steps=5", "train.eval_tokens=4096", "train.sample_tokens=4")
    arguments = ["train", "--preset", preset, "--smoke", "--json", *(x for s in sets for x in ("--set", s))]
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["preset"] == preset
    assert summary["steps"] == 5
    assert summary["nan_count"] == 0
    assert summary["last_loss"] < summary["first_loss"]
    assert summary["run_dir"].startswith(f"runs/{preset}-")
    assert (tmp_path / summary["run_dir"] / "model.safetensors").is_file()


def test_train_then_eval_agree_and_the_terminal_output_has_the_tables(tmp_path: Path) -> None:
    text = "\n\n".join(f"Paragraph {i}: " + "the quick brown fox jumps over the lazy dog; " * 40 for i in range(60))
    (tmp_path / "my text.txt").write_text(text)
    arguments = [
        "--smoke",
        "--data",
        "my text.txt",
        "--out",
        "run",
        "--set",
        "train.max_steps=3",
        "--set",
        "model.vocab_size=400",
    ]
    done = colakit("train", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "validation loss" in done.stdout
    assert "gzip -9, same text" in done.stdout
    assert "optim.warmup_steps" in done.stderr  # a short run gets a shorter warm-up, and is told
    evaluated = json.loads(colakit("eval", "run", "--json", cwd=tmp_path).stdout)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert evaluated["is_held_out"]
    for key, then in {"loss": "val_loss", "bits_per_byte": "bits_per_byte", "top1": "accuracy"}.items():
        assert evaluated["scores"][key]["value"] == pytest.approx(summary[then], rel=1e-6)


def test_bench_of_the_optimizer_alone(tmp_path: Path) -> None:
    asked = ["--optimizer-only", "--smoke", "--repeats", "2", "--out", "a.json", "--json"]
    done = colakit("bench", *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record == json.loads((tmp_path / "a.json").read_text())
    assert (record["preset"], record["dtype"], record["repeats"]) == ("cola-fan", "float32", 2)
    assert record["device"].endswith("float32")
    for name in ("textbook", "torch_muon"):
        assert 0 < record[f"{name}_over_muon"] == pytest.approx(record[f"{name}_ms"] / record["muon_ms"])
    assert 0 < record["muon_over_adamw"] == pytest.approx(record["muon_ms"] / record["adamw_ms"])
    assert record["state_bytes"] == 4 * record["parameters"]


def test_bench_measures_presets_and_peers_beside_each_other(tmp_path: Path) -> None:
    tiny = [f"model.{s}" for s in ("d_model=32", "n_layers=1", "n_heads=2", "n_kv_heads=2", "d_ff=32", "vocab_size=99")]
    sets = [word for item in tiny for word in ("--set", item)]
    asked = ["--batch-sizes", "2", "--seq-len", "32", "--peer", "hf-llama", "--repeats", "3", "--out", "a.json"]
    done = colakit("bench", "-p", "original", "-p", "cola-fan-muon", "--smoke", *sets, *asked, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "a.json").read_text())
    assert report["machine"]["threads"] >= 1
    assert report["peak"]["matmul_flops_per_s"] > 1e9
    results, peers = report["results"], report["peers"]
    expected = [("original", 2), ("cola-fan-muon", 2)]
    assert [(r["preset"], r["batch_size"]) for r in results] == expected
    assert [(p["name"], p["preset"], p["batch_size"]) for p in peers] == [("hf-llama", "original", 2)]
    for r in results:
        assert (r["seq_len"], r["compiled"], r["repeats"], r["reason"]) == (32, False, 3, None)
        assert r["tokens_per_s"] == pytest.approx(r["it_per_s"] * r["batch_size"] * 32)
        assert 0 < r["forward_ms"] + r["backward_ms"] + r["optimizer_ms"] < 1.5 * r["step_ms"]
        assert 0 < r["peak_memory_gib"] < 1
        assert r["device_gib"] > 0.1
        assert 0 < r["mfu_frac"] < 1
        assert r["gpu_util_frac"] is None or torch.cuda.is_available()
    named = {(r["of"], r["over"], r["batch_size"]) for r in report["ratios"]}
    assert named == {
        (of, over, 2)
        for of, over in (("cola-fan-muon", "original"), ("cola-fan-muon", "hf-llama"), ("original", "hf-llama"))
    }
    same = colakit("bench", "compare", "a.json", "a.json", cwd=tmp_path)
    assert (same.returncode, "worse" in same.stdout) == (0, False)
    slower = {**report, "results": [{**r, "tokens_per_s": 0.9 * r["tokens_per_s"]} for r in results]}
    (tmp_path / "b.json").write_text(json.dumps(slower))
    for threshold, code in (("9", 1), ("11", 0)):
        done = colakit("bench", "compare", "a.json", "b.json", "--threshold", threshold, cwd=tmp_path)
        assert done.returncode == code, done.stderr


_SHAPE = ("d_model=24", "n_heads=3", "n_kv_heads=3", "d_ff=40", "n_layers=4", "vocab_size=500")
_LIGHT = ["-p", "cola-fan-dropout-muon", "--smoke", *(word for item in _SHAPE for word in ("--set", f"model.{item}"))]
"""A model whose sequences are large beside what a process holds anyway."""


def find_largest_batch(limit: float, cwd: Path) -> int:
    limits = ["--max-batch", "--memory-gib", str(limit), "--seq-len", "512", "--out", "a.json"]
    done = colakit("bench", *_LIGHT, *limits, cwd=cwd)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads((cwd / "a.json").read_text())["results"]
    found = record["max_batch"]
    assert isinstance(found, int), record
    assert 0.4 < record["peak_gib"] <= 0.95 * limit
    assert (record["steps"], len(record["probes"]) <= 8) == (10, True)
    # Beyond it nothing fits that was tried for as long, or close to it.
    assert found < min(p["batch_size"] for p in record["probes"] if not p["fits"])
    how_many = "as many as fit at once" if record["is_bounded"] else "as many as were seen to fit at once"
    assert f"{how_many}: --set train.batch_size={found} --set train.micro_batch_size={found}\n" in done.stdout
    return found


only_where_a_cpu_has_limits = pytest.mark.skipif(
    torch.cuda.is_available() or sys.platform != "linux", reason="a CPU's limits, which Linux keeps"
)


@only_where_a_cpu_has_limits
@pytest.mark.slow
def test_a_search_without_a_result_ends_with_code_2(tmp_path: Path) -> None:
    done = colakit("bench", *_LIGHT, "--max-batch", "--memory-gib", "0.01", "--json", "--out", "a.json", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert result["reason"].startswith("one sequence takes 0.")
    assert f"Nothing was measured. {result['preset']}: {result['reason']}." in " ".join(done.stderr.split())
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads(done.stdout)


def test_a_bench_without_a_result_ends_with_code_2(tmp_path: Path) -> None:
    done = colakit("bench", *_LIGHT, "--batch-sizes", "1000000", "--json", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert result["reason"].endswith("lower --batch-sizes")
    assert f"Nothing was measured. {result['preset']}, batch 1000000: {result['reason']}." in " ".join(
        done.stderr.split()
    )


@only_where_a_cpu_has_limits
def test_a_largest_batch_is_found(tmp_path: Path) -> None:
    find_largest_batch(0.7, tmp_path)


@pytest.mark.slow
@only_where_a_cpu_has_limits
def test_a_largest_batch_trains_and_twice_of_it_does_not(tmp_path: Path) -> None:
    found = find_largest_batch(1.2, tmp_path)
    prepared = colakit("data", "prepare", *_LIGHT, cwd=tmp_path)  # whose memory is no matter of a step's
    assert prepared.returncode == 0, prepared.stderr
    for size, code in ((found, 0), (2 * found, 2)):
        wanted = (f"train.batch_size={size}", "model.seq_len=512", "train.memory_gib=1.2", "train.max_steps=3")
        settings = [word for item in wanted for word in ("--set", item)]
        trained = colakit("train", *_LIGHT, *settings, "--out", f"run-{size}", cwd=tmp_path)
        assert (trained.returncode, "Out of memory" in trained.stderr) == (code, code == 2), trained.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--preset", "cola-fann"], "Did you mean cola-fan"),
        (["train", "--smoke", "--set", "model.n_head=3"], "Did you mean model.n_heads?"),
        (["train", "--smoke", "--set", "train.max_steps=2.5"], "train.max_steps = 2.5"),
        (["train", "--smoke", "--set", "model.n_heads=7"], "divisible"),
        (["train", "--smoke", "--data", "nowhere.txt"], "nowhere.txt"),
        (["train", "--smoke", "--set", "model.attention=flash"], "flash"),
        (["train", "--preset", "cola"], "--smoke"),
        (["train", "--smoke", "--out", "/dev/null/run"], "--out"),
        (["train", "--smoke", "--set", "data.tokenizer=./nowhere"], "data.tokenizer"),
        (["eval", "nowhere"], "nowhere: no such folder"),
        (["bench", "--batch-sizes", "4,x"], "--batch-sizes"),
        (["bench", "--set", "train.micro_batch_size=4", "--batch-sizes", "6"], "micro_batch_size"),
    ],
)
def test_a_mistake_is_one_message_exit_2_and_no_folder(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = colakit(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
