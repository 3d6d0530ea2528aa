"""Runs on CUDA: resumed they are the undisturbed run, saving goes on beside training, memory that runs out is told."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from colakit.build import build_model, build_optimizer, pick_machine
from colakit.checkpoint.folders import Checkpoints
from colakit.checkpoint.model_file import MODEL_FILE, OPTIMIZER_FILE, model_tensors, optimizer_tensors
from colakit.config.presets import preset_names
from colakit.errors import RunError
from colakit.records.run import StepRecord
from colakit.train.saver import Saver
from tests.train.tiny_runs import Killed, On, end, kill_at, make_config, records, run, write_corpus

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

CUDA = ("train.device=cuda", "train.deterministic=true")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "poems.jsonl")


@pytest.fixture
def little_memory() -> Iterator[Callable[[float], None]]:
    """Calling it leaves this process so many GiB of the device."""
    total_gib = torch.cuda.get_device_properties(0).total_memory / 2**30

    def leave(gib: float) -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(gib / total_gib)

    yield leave
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.parametrize("preset", [name for name in preset_names() if name != "smollm2-stages"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_killed_and_resumed_it_is_the_undisturbed_run(corpus: Path, tmp_path: Path, preset: str, dtype: str) -> None:
    config = make_config(corpus, *CUDA, f"train.dtype={dtype}", preset=preset)
    run(tmp_path / "whole", config)
    with pytest.raises(Killed):
        run(tmp_path / "run", config, kill_at(5))
    run(tmp_path / "run")
    assert end(tmp_path / "run") == end(tmp_path / "whole")
    assert records(tmp_path / "run") == records(tmp_path / "whole")


def test_documents_that_do_not_see_each_other_are_resumed_exactly(corpus: Path, tmp_path: Path) -> None:
    config = make_config(corpus, *CUDA, "train.dtype=bfloat16", "data.attend_across_documents=false")
    run(tmp_path / "whole", config)
    with pytest.raises(Killed):
        run(tmp_path / "run", config, kill_at(5))
    run(tmp_path / "run")
    assert end(tmp_path / "run") == end(tmp_path / "whole")


def test_what_is_saved_is_the_step_it_was_taken_at_though_training_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(corpus, "train.device=cuda")
    model = build_model(config, pick_machine(config))
    optimizer = build_optimizer(model, config.optim)

    def step() -> None:
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()

    step()
    expected = {MODEL_FILE: model_tensors(model), OPTIMIZER_FILE: optimizer_tensors(optimizer)}
    may_write, honest = threading.Event(), Saver._write

    def write(self: Saver, *args: Any) -> None:
        assert may_write.wait(60)
        honest(self, *args)

    monkeypatch.setattr(Saver, "_write", write)
    saver = Saver(Checkpoints(tmp_path / "checkpoints"), keep_last=1, keep_every=None)
    saver.save(1, model, optimizer, {}, None)  # returns while nothing is written
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    may_write.set()
    saver.close()
    for name, tensors in expected.items():
        written = load_file(tmp_path / "checkpoints" / "step-00000001" / name)
        assert written.keys() == tensors.keys()
        assert all(torch.equal(written[key], tensor) for key, tensor in tensors.items())


def test_memory_that_runs_out_is_told_and_nothing_is_lost(
    corpus: Path, tmp_path: Path, little_memory: Callable[[float], None]
) -> None:
    whole = make_config(corpus, "train.device=cuda", "train.batch_size=64", "model.vocab_size=32000")

    def act(record: StepRecord) -> None:
        if record.step == 3:
            little_memory(0.05)

    with pytest.raises(RunError, match=r"Out of memory at step \d+, in a micro-batch of 64 .* after step \d+"):
        run(tmp_path / "run", whole, On(act))
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert run(tmp_path / "run", sets=("train.micro_batch_size=16",)).steps == 8
