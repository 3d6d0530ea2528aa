"""What the saver promises: one checkpoint after the other, nothing half-made left, faults told, records kept first."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from colakit.build import Machine, build_model, build_optimizer
from colakit.checkpoint.folders import Checkpoints, verify
from colakit.checkpoint.model_file import load_optimizer, optimizer_tensors
from colakit.config.load import resolve
from colakit.model.lm import LM
from colakit.optim.combined import CombinedOptimizer
from colakit.train.saver import Saver
from tests.train.tiny_runs import SETS

CPU = Machine(torch.device("cpu"), torch.float32)


class Full(Checkpoints):
    """Publishes nothing while `fail` is set."""

    fail = False

    def publish(self, aside: Path) -> Path:
        if self.fail:
            raise OSError(28, "No space left on device")
        return super().publish(aside)


@pytest.fixture
def trained() -> tuple[LM, CombinedOptimizer]:
    config = resolve("cola-fan-muon", smoke_run=True, sets=SETS).config
    model = build_model(config, CPU)
    optimizer = build_optimizer(model, config.optim)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return model, optimizer


def save(saver: Saver, step: int, trained: tuple[LM, CombinedOptimizer]) -> None:
    saver.save(step, *trained, {"state.json": {"step": step}}, None)


def test_a_fault_is_raised_by_the_next_save_and_leaves_nothing_behind(tmp_path: Path, trained: Any) -> None:
    checkpoints = Full(tmp_path / "checkpoints")
    saver = Saver(checkpoints, keep_last=3, keep_every=None)
    save(saver, 1, trained)
    saver.wait()
    checkpoints.fail = True
    save(saver, 2, trained)
    with pytest.raises(OSError, match="No space left"):
        save(saver, 3, trained)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"], "not half of another"
    checkpoints.fail = False
    save(saver, 4, trained)
    saver.close()
    assert [path.name for path in checkpoints.all()] == ["step-00000001", "step-00000004"]
    for path in checkpoints.all():
        verify(path)


def test_a_fault_that_nobody_waits_for_is_told_at_the_end(
    tmp_path: Path, trained: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "colakit")
    checkpoints = Full(tmp_path / "checkpoints")
    saver = Saver(checkpoints, keep_last=3, keep_every=None)
    checkpoints.fail = True
    save(saver, 2, trained)
    saver.close()
    assert "The last checkpoint cannot be written: [Errno 28] No space left on device." in caplog.text


def test_what_is_loaded_is_aligned_as_what_torch_allocates(tmp_path: Path, trained: Any) -> None:
    """A tensor mapped from a file may lie at any byte, and kernels round differently there."""
    _, optimizer = trained
    saver = Saver(Checkpoints(tmp_path / "checkpoints"), keep_last=3, keep_every=None)
    save(saver, 1, trained)
    saver.close()
    load_optimizer(optimizer, tmp_path / "checkpoints" / "step-00000001")
    assert all(tensor.data_ptr() % 64 == 0 for tensor in optimizer_tensors(optimizer).values() if tensor.dim())
