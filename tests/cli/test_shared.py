"""A command that several processes share: what is refused before any of them starts, and who says what."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from colakit.build import pick_machine
from colakit.config.load import resolve
from colakit.config.schema import TrainConfig
from colakit.errors import ConfigError, RunError
from colakit.parallel.environment import SOLE, Place, place

Run = Callable[..., Any]  # Any: conftest's Outcome, which cannot be imported from here


def test_torchrun_says_which_of_several_a_process_is() -> None:
    variables = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    assert place(variables) == Place(5, 1, 8, 4)
    assert not place(variables).is_main
    assert place({}) == SOLE
    assert place({"WORLD_SIZE": "8"}) == SOLE, "of some other launcher, which starts no process for each rank"
    with pytest.raises(RunError, match="not as torchrun sets them: LOCAL_RANK=, LOCAL_WORLD_SIZE="):
        place({"RANK": "0", "WORLD_SIZE": "2"})
    with pytest.raises(RunError, match="RANK=8, LOCAL_RANK=1, WORLD_SIZE=8, LOCAL_WORLD_SIZE=4"):
        place({**variables, "RANK": "8"})


def test_what_only_one_process_does_is_not_done_by_several(colakit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os._exit", sys.exit)
    outcome = colakit("presets")
    assert outcome.code == 2
    assert "A launcher has started 2 processes, and `colakit train` is the only command" in outcome.err


@pytest.mark.parametrize(
    ("micro", "world_size", "expected"),
    [(None, 1, 24), (None, 4, 6), (8, 1, 8), (8, 2, 6), (8, 3, 8), (5, 4, 3), (100, 2, 12)],
)
def test_a_micro_batch_is_an_upper_limit_of_equal_parts(micro: int | None, world_size: int, expected: int) -> None:
    assert TrainConfig(batch_size=24, micro_batch_size=micro).micro_batch_size_of(world_size) == expected


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "--nproc", "3", "--set", "train.batch_size=8"], "divisible by the number of processes (3)"),
        (["train", "--nproc", "2", "--set", "parallel.strategy=tp"], "tensor parallelism is not offered"),
        (["train", "--nproc", "2", "--set", "parallel.strategy=zero"], "Input should be 'ddp', 'zero1' or 'fsdp2'"),
        (["train", "--nproc", "2", "--set", "parallel.timeout_s=0"], "parallel.timeout_s"),
        (["train", "--nproc", "2", "--verify-resume"], "Leave --nproc out"),
        (["train", "--set", "parallel.strategy=zero1"], "there is one process, so this would have no effect"),
        (["bench", "--set", "parallel.strategy=zero1"], "there is one process, so this would have no effect"),
        (["params", "--set", "parallel.strategy=zero1"], "`colakit bench --nproc N` measures what several have"),
        (["flops", "-p", "cola", "--set", "parallel.strategy=zero1"], "there is one process"),
        (["bench", "--nproc", "2", "--peer", "hf-llama"], "has no part in --nproc"),
        (["bench", "--nproc", "2", "--max-batch"], "has no part in --max-batch"),
        (["bench", "--nproc", "2", "--optimizer-only"], "has no part in --optimizer-only"),
        (["bench", "--nproc", "3", "--batch-sizes", "8"], "divisible by the number of processes (3)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_told_before_any_process_is_started(colakit: Run, arguments: list[str], told: str) -> None:
    outcome = colakit(arguments[0], "--smoke", *arguments[1:])
    assert outcome.code == 2
    assert told.lower() in " ".join(outcome.err.split()).lower().replace("│ ", "")


@pytest.mark.parametrize(("part", "name"), [("is_available", "torch.distributed"), ("is_gloo_available", "gloo")])
def test_what_torch_was_built_without_is_named(
    colakit: Run, monkeypatch: pytest.MonkeyPatch, part: str, name: str
) -> None:
    monkeypatch.setattr(f"torch.distributed.{part}", lambda: False)
    for command in ("train", "bench"):
        outcome = colakit(command, "--smoke", "--nproc", "2", "--set", "parallel.strategy=fsdp2")
        assert outcome.code == 2
        assert f"parallel.strategy = 'fsdp2': this torch was built without {name}" in outcome.err


def a_gpu(monkeypatch: pytest.MonkeyPatch, *, nccl: bool = True) -> None:
    """One, as torch tells of it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: nccl)


@pytest.mark.parametrize("command", ["train", "bench"])
def test_more_processes_than_gpus_are_refused(colakit: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    a_gpu(monkeypatch)
    outcome = colakit(command, "--smoke", "--nproc", "2")
    assert outcome.code == 2
    assert "--nproc = 2: there is 1 GPU on this machine, and each has one process." in " ".join(outcome.err.split())
    with pytest.raises(ConfigError, match="there is 1 GPU on this machine"):  # under torchrun
        pick_machine(resolve("cola").config, Place(1, 1, 2, 2))


def test_gpus_without_nccl_are_refused(colakit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    a_gpu(monkeypatch, nccl=False)
    outcome = colakit("train", "--smoke", "--nproc", "2")
    assert outcome.code == 2
    assert "this torch was built without NCCL" in outcome.err


def test_one_process_loads_nothing_that_several_need() -> None:
    """They take half a second, and a torch that was built without them trains all the same."""
    code = (
        "import sys, colakit.train.trainer, colakit.cli.app\n"
        "heavy = ('tensor', 'fsdp', 'checkpoint', 'elastic', 'launcher')\n"
        "print([m for m in heavy if f'torch.distributed.{m}' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
