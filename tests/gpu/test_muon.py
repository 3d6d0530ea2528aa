"""Muon on CUDA: accuracy, memory, and a host that never waits for the device. Run with ``-m gpu``."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from colakit.optim.muon import Muon
from colakit.optim.newton_schulz import normalize_, orthogonalize, textbook
from tests.optim.test_muon import SETTINGS
from tests.optim.test_newton_schulz import COEFFICIENTS, HARD, distance, matrices

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """An operation for which the host waits is an error."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("steps", [5, 10])
@pytest.mark.parametrize("kind", [*HARD, "random"])
def test_it_is_at_least_as_close_to_float64_as_the_textbook_in_bfloat16(kind: str, steps: int) -> None:
    x = HARD[kind] if kind != "random" else matrices(3, 48, 192)
    expected = orthogonalize(x.clone(), COEFFICIENTS, steps)
    on_device = x.float().cuda()
    mine = orthogonalize(on_device.clone(), COEFFICIENTS, steps).cpu()
    in_bfloat16 = textbook(normalize_(on_device).bfloat16(), COEFFICIENTS, steps).float().cpu()
    assert distance(mine, expected) <= distance(in_bfloat16, expected)


def test_singular_values_come_near_1() -> None:
    singular = torch.linalg.svdvals(orthogonalize(matrices(3, 24, 40).float().cuda(), COEFFICIENTS, 5))
    assert float(singular.min()) > 0.55
    assert float(singular.max()) < 1.35


@pytest.mark.usefixtures("no_waiting")
def test_a_step_waits_for_nothing() -> None:
    params = [nn.Parameter(torch.ones(9, 5, device="cuda")), nn.Parameter(torch.ones(6, 20, device="cuda"))]
    optimizer = Muon([{"params": params, "matrix_rows": [(4, 5), (3, 3)]}], **SETTINGS)
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()


def test_a_step_holds_the_workspace_of_one_shape() -> None:
    params = [nn.Parameter(torch.ones(40 * 64, 256, device="cuda")), nn.Parameter(torch.ones(64, 100, device="cuda"))]
    optimizer = Muon([{"params": params, "matrix_rows": [(64,) * 40, (64,)]}], **SETTINGS)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.step()
    assert torch.cuda.max_memory_allocated() - before <= 1.05 * optimizer.workspace_bytes()
