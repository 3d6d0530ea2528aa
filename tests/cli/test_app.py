"""The command as a whole: no torch, exit codes, one message, quiet pipes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import colakit as package
from colakit.cli import bench as bench_command
from colakit.cli import params as params_command
from colakit.cli.app import main
from colakit.config.load import resolve
from tests.cli.without_torch import answers_at_once

Run = Callable[..., Any]  # Any: conftest's Outcome, which cannot be imported from here

COUNTING = [
    ["--help"],
    ["--version"],
    ["flops"],
    ["flops", "--preset", "cola", "--json"],
    ["flops", "--preset", "cola", "--preset", "cola-m"],
    ["params"],
    ["params", "--preset", "cola-m", "--memory", "--routing"],
    ["paper"],
    ["paper", "text", "--json"],
    ["presets"],
    ["presets", "show", "cola", "--smoke"],
]


@pytest.mark.parametrize("args", COUNTING, ids=" ".join)
def test_counting_and_listing_never_import_torch(args: list[str]) -> None:
    answers_at_once(args)


def test_help_lists_the_commands_in_their_order(colakit: Run) -> None:
    """Those with subcommands come last."""
    text = colakit("--help").out.partition("Commands")[2]
    order = ["train", "eval", "flops", "params", "bench", "presets"]
    listed = [line.strip("│| ").partition(" ")[0] for line in text.splitlines()]
    commands = [name for name in listed if name in order]
    assert commands == [name for name in order if name in commands]
    assert {"flops", "params", "presets"} <= set(commands)


def test_version(colakit: Run) -> None:
    outcome = colakit("--version")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"colakit {package.__version__}\n", "")


def test_it_runs_as_a_module() -> None:
    args = [sys.executable, "-m", "colakit", "presets", "--json"]
    done = subprocess.run(args, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["schema"] == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["presets", "show", "colla"], "preset = 'colla': no preset has this name. Did you mean cola"),
        (["presets", "show", "missing.toml"], "preset = 'missing.toml': the file cannot be read"),
        (["presets", "show", "cola", "--set", "train.max_step=3"], "Did you mean train.max_steps?"),
        (["params", "--preset", "cola", "--preset", "colla"], "preset = 'colla'"),
        (["params", "--set", "model.n_heads=18", "--set", "optim.lr=-1", "--json"], "2 problems in the configuration"),
        (["flops", "--preset", "cola", "--set", "model.d_ff=0"], "model.d_ff = 0"),
        (["presets", "show", "cola", "--set", "data.path=[bold]"], "data.path = '[bold]'"),
        (["flops", "--preset", "cola", "--set", "model.n_layers=1000000000"], "less than or equal to 1000"),
        (["params", "-p", "cola", "--set", "model.d_model=999999999"], "less than or equal to 16777216"),
        (["bench", "--batch-sizes", "2", "--set", "train.batch_size=3"], "Give --batch-sizes instead"),
        (["bench", "--batch-sizes", "0"], "not a list of batch sizes"),
        (["bench", "--batch-sizes", ""], "not a list of batch sizes"),
        (["bench", "--set", "model.seq_len=64"], "Give --seq-len instead"),
        (["bench", "--optimizer-only", "--set", "train.batch_size=2"], "'train.batch_size=2': has no part in"),
        (["bench", "--optimizer-only", "--set", "optim.optimizer=adamw"], "--optimizer-only is about Muon"),
    ],
)
def test_a_wrong_configuration_is_one_message_and_exit_2(colakit: Run, args: list[str], message: str) -> None:
    outcome = colakit(*args)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("Error: ") == 1
    assert outcome.err.count("in the configuration") == 1
    assert message in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["flop"], "Did you mean 'flops'"),
        (["flops", "--d", "0"], "'--d'"),
        (["flops", "--n", "-3"], "'--n'"),
        (["flops", "--d-ff", "x"], "'--d-ff'"),
        (["flops", "--r", "1.5"], "'--r'"),
        (["flops", "--d", "99999999999"], "'--d'"),
        (["params", "--batch-size", "3"], "counts for --memory only"),
        (["bench", "--optimizer-only", "--batch-sizes", "4"], "has no part in --optimizer-only"),
        (["bench", "--optimizer-only", "--budget-s", "9"], "has no part in --optimizer-only"),
        (["bench", "--optimizer-only", "--peer", "hf-llama"], "has no part in --optimizer-only"),
        (["bench", "--optimizer-only", "-p", "cola", "-p", "original"], "--optimizer-only takes one"),
        (["bench", "--all", "--preset", "cola"], "leave --preset out"),
        (["bench", "--peer", "nanogpt"], "neither hf-llama nor torch-muon"),
        (["bench", "--peer", "torch-muon", "-p", "cola"], "torch-muon needs a preset that trains with Muon"),
        (["bench", "--out", "nowhere/a.json"], "there is no folder nowhere"),
        (["params", "-p", "cola", "--memory", "--set", "model.attention=reference"], "model.attention=reference"),
        (["flops", "--r", "768"], "--r 768: must be below --d 768"),
        (["flops", "--d-ff", "100"], "--r 192 (d / 4): must be below --d 768 and --d-ff"),
        (["flops", "--preset", "cola", "--batch-size", "0"], "'--batch-size'"),
        (["flops", "--preset", "cola", "--d", "3"], "--d: belongs to Table 6"),
        (["flops", "--preset", "cola", "--d-ff", "768", "--n", "1"], "--d-ff, --n: belongs to Table 6"),
        (["flops", "--batch-size", "3"], "--batch-size: counts for a preset only"),
        (["flops", "--smoke", "--set", "train.seed=3"], "--smoke, --set: counts for a preset only"),
        (["params", "cola"], "unexpected extra argument"),
        (["params", "--presets", "cola"], "No such option: --presets"),
        (["presets", "cola"], "No such command 'cola'"),
        (["presets", "show"], "Missing argument"),
        (["presets", "--json", "show", "cola"], "put it last"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_a_wrong_command_line_is_one_message_and_exit_2(colakit: Run, args: list[str], message: str) -> None:
    outcome = colakit(*args)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert outcome.err.count("─ Error ─") == 1


def test_a_bug_leaves_its_traceback(colakit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(params_command, "count_params", broken)
    with pytest.raises(RuntimeError, match="ours"):
        colakit("params")


def test_a_bug_exits_1_without_showing_locals() -> None:
    """Locals would be whole tensors."""
    code = (
        "from colakit.cli import app, params\n"
        "def broken(model):\n"
        "    weights = 'a local value'\n"
        "    return 1 / 0\n"
        "params.count_params = broken\n"
        "app.main(['params'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ZeroDivisionError" in done.stderr
    assert "a local value" not in done.stderr


@pytest.mark.parametrize("args", [["presets", "--json"], ["params"], ["flops"], ["presets", "show", "cola"]])
def test_a_closed_pipe_is_quiet(args: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "colakit", *args]
    # Buffered, as it is for people: then the last line is only written when the output is flushed.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, env=env, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_terminal_without_the_characters_is_no_crash() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "colakit", "presets"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=True)
    assert "?6.2, tied" in done.stdout


def test_main_reads_the_process_arguments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", ["colakit", "--version"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("colakit ")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_process_may_be_started_with_its_streams_closed(closed: str) -> None:
    command = f"{sys.executable} -m colakit flops --preset cola {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
@pytest.mark.parametrize("option", ["", "--json"])
def test_an_output_that_cannot_be_written_is_one_message(option: str) -> None:
    command = f"{sys.executable} -m colakit flops --preset cola {option} > /dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "Error: the output cannot be written: No space left on device.\n")


def test_a_report_that_is_not_there_is_one_message(colakit: Run) -> None:
    outcome = colakit("bench", "compare", "nowhere.json", "nowhere.json")
    assert outcome.code == 2
    assert outcome.err.startswith("Error: nowhere.json cannot be read as a report")


def test_the_peer_takes_the_shape_of_a_dense_preset_file(tmp_path: Path) -> None:
    """And `original`'s where no dense preset is asked for."""
    own = tmp_path / "mine.toml"
    own.write_text('base = "original"\n[model]\nn_layers = 3\n')

    def config(name: str, size: int) -> Any:
        return resolve(name, sets=[f"train.batch_size={size}"]).config

    for names, n_layers in ((["cola", str(own)], 3), (["cola"], 12)):
        everyone = bench_command._contestants(names, [2, 4], config, compiled=False, peers=["hf-llama"])
        shapes = [
            (c.config.model.linear, c.config.model.n_layers, c.config.train.batch_size) for c in everyone if c.peer
        ]
        assert shapes == [("dense", n_layers, 2), ("dense", n_layers, 4)]


def test_an_interruption_is_told(colakit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_command, "resolve", interrupt)
    outcome = colakit("bench", "-p", "cola")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "Interrupted.\n")


def test_of_several_processes_the_main_one_alone_tells_of_an_interruption(
    colakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those beside it, nor the one that has started them."""
    monkeypatch.setattr("colakit.parallel.launch.launch", lambda *_, **__: 130)
    outcome = colakit("train", "--smoke", "--nproc", "2")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("colakit.cli.train.resolve", interrupt)
    monkeypatch.setattr("os._exit", sys.exit)
    for rank, told in (("0", "Interrupted.\n"), ("1", "")):
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        outcome = colakit("train", "--smoke")
        assert (outcome.code, outcome.out, outcome.err) == (130, "", told)
