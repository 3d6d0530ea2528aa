"""On CUDA: the loss that works in place, what bench counts there, and what NVML says. Run with ``-m gpu``."""

import pytest
import torch
import torch.nn.functional as F

from colakit.analysis import chunking
from colakit.analysis.memory import memory_ledger
from colakit.bench.contestant import Contestant
from colakit.bench.course import Course
from colakit.bench.peaks import measure_peaks
from colakit.bench.run import run_bench, run_max_batch
from colakit.build import pick_machine
from colakit.config.load import resolve
from colakit.loss import IGNORE, loss_sums
from colakit.units import GIB

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("vocab_size", [700, 5000, 49_152])
@pytest.mark.parametrize("chunk", [7, 10**6])
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_softmax_in_place_is_that_of_any_width(
    vocab_size: int, chunk: int, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch has one kernel for rows of up to 1024 and others for longer ones. float32 sums of 40 terms, to 1e-4."""
    monkeypatch.setattr(chunking, "MAX_LOGITS", chunk * vocab_size)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=generator) for s in ((2, 20, 64), (vocab_size, 64), (vocab_size,)))
    targets = torch.randint(vocab_size, (2, 20), generator=generator)
    targets[0, :5] = IGNORE
    own = [t.cuda().requires_grad_() for t in (x, weight, bias)]
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    torch.use_deterministic_algorithms(deterministic)
    try:
        sums = loss_sums(*own, targets.cuda())
        sums.nll.backward()
    finally:
        torch.use_deterministic_algorithms(False)
    logits = F.linear(*exact).flatten(0, 1)
    expected = F.cross_entropy(logits, targets.flatten(), reduction="sum", ignore_index=IGNORE)
    expected.backward()
    torch.testing.assert_close(sums.nll.detach().cpu().double(), expected.detach(), rtol=1e-5, atol=0.0)
    assert int(sums.correct) == int((logits.argmax(-1) == targets.flatten()).sum())
    for a, b in zip(own, exact, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad.cpu().double(), b.grad, rtol=1e-3, atol=1e-4)


def contestant(preset: str, *sets: str, compiled: bool = False) -> Contestant:
    sizes = ("model.n_layers=4", "model.seq_len=512", "train.batch_size=8", "model.vocab_size=8000")
    return Contestant(resolve(preset, sets=[*sizes, *sets]).config, compiled=compiled)


@pytest.mark.parametrize("preset", ["original", "cola-smollm2", "cola-m", "cola-fan-dropout-muon"])
def test_the_peak_is_that_of_the_ledger(preset: str) -> None:
    of = contestant(preset)
    course = Course(of, pick_machine(of.config))
    course.warm_up()
    course.turn(3)
    found, ledger = course.figures(), memory_ledger(of.config)
    course.close()
    assert found.memory.peak is not None
    assert found.memory.peak * GIB == pytest.approx(ledger.total, rel=0.1)
    assert found.forward_ms is not None
    assert found.backward_ms is not None
    times = found.forward_ms + found.backward_ms + sum(part.ms for part in found.optimizer)
    assert times < 1100.0 * min(found.times)
    assert found.gpu is not None
    assert found.gpu.util_frac is None or 0 < found.gpu.util_frac <= 1


def test_a_report_has_the_gpu_s_figures() -> None:
    everyone = [contestant("original"), contestant("cola-smollm2"), contestant("cola-smollm2", compiled=True)]
    report = run_bench(everyone, budget_s=300.0, repeats=3, watch=print)
    assert report.machine.gpu == torch.cuda.get_device_name()
    for r in report.results:
        assert r.reason is None or "GPM" in r.reason or "NVML" in r.reason, r.reason
        assert r.it_per_s
        assert 0 < (r.mfu_frac or 0) < 1
        assert (r.peak_memory_gib or 0) <= (r.reserved_gib or 0) <= (r.device_gib or 0)
    peak = measure_peaks(pick_machine(everyone[0].config))
    assert peak.dtype in ("bfloat16", "float32")
    assert peak.bytes_per_s > 5e10


@pytest.mark.parametrize("preset", ["cola-smollm2", "cola-m"])
def test_a_largest_batch_fits_and_the_limit_ends_larger_ones(preset: str) -> None:
    config = contestant(preset, "model.attention=sdpa").config
    report = run_max_batch([config], memory_gib=6.0, budget_s=500.0, watch=print)
    (record,) = report.results
    assert record.max_batch is not None, record
    assert record.peak_gib is not None
    assert 3.0 < record.peak_gib <= 0.95 * 6.0
    assert record.predicted == pytest.approx(record.max_batch, rel=0.1)
    assert [p.reason for p in record.probes if not p.fits] == ["out of memory"] * sum(not p.fits for p in record.probes)
    assert any(not p.fits for p in record.probes)
