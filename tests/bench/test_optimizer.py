"""What is timed against what, on the same matrices and gradients, and how a piece of work counts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from colakit.analysis.flops import newton_schulz
from colakit.bench import optimizer as optimizer_module
from colakit.bench.optimizer import TORCH_MUON_ONE_EACH, TextbookMuon, bench_optimizer
from colakit.build import Machine, build_model, build_optimizer
from colakit.config.load import resolve
from colakit.config.schema import RunConfig
from colakit.optim.muon import Muon

CPU = Machine(torch.device("cpu"), torch.float32)
TINY = ("d_model=24", "n_layers=2", "n_heads=3", "n_kv_heads=3", "d_ff=40", "vocab_size=61", "seq_len=10")


def tiny_config(*sets: str, preset: str = "cola-fan") -> RunConfig:
    own = ["optim.optimizer=muon", "train.device=cpu", *(f"model.{s}" for s in TINY), *sets]
    return resolve(preset, smoke_run=True, sets=own).config


class Clock:
    """Each optimizer takes a time of its own, which its step adds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps: list[tuple[str, int]] = []
        """Contestant, and the parameters it moved."""

    def wrap(self, cls: type[Any], name: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        plain: Callable[..., Any] = cls.step

        def step(opt: Any) -> Any:
            size = sum(p.numel() for g in opt.param_groups for p in g["params"])
            self.steps.append(("textbook" if type(opt) is TextbookMuon else name, size))
            self.now += seconds * (2.0 if type(opt) is TextbookMuon else 1.0)
            return plain(opt)

        monkeypatch.setattr(cls, "step", step)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.wrap(Muon, "muon", 3.0, monkeypatch)
    clock.wrap(torch.optim.Muon, "torch_muon", 0.5, monkeypatch)
    clock.wrap(torch.optim.AdamW, "adamw", 0.25, monkeypatch)
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    return clock


def test_every_contestant_is_timed_in_turn(clock: Clock) -> None:
    config = tiny_config()
    record = bench_optimizer(config, CPU, 3)
    shapes = 7  # a of 24 and of 40 inputs; b of q, k and v (3 and 18 rows), o, gate_up, down
    size = record.parameters
    once = [("muon", size), ("textbook", size), *[("torch_muon", -1)] * shapes, ("adamw", size)]
    assert [(name, n if name != "torch_muon" else -1) for name, n in clock.steps] == once * 4  # the first is a warm-up
    assert record.matrices == 2 * (3 * 4 + 6)
    assert (record.muon_ms, record.textbook_ms, record.adamw_ms) == (3000.0, 6000.0, 250.0)
    # Half a second for one of each shape, times their number.
    assert record.torch_muon_ms == 500.0 * record.matrices
    assert record.textbook_over_muon == 2.0
    assert record.torch_muon_over_muon == pytest.approx(record.torch_muon_ms / 3000.0)
    assert record.muon_over_adamw == 12.0
    assert record.reason == TORCH_MUON_ONE_EACH
    assert (record.preset, record.repeats, record.dtype) == ("cola-fan", 3, "float32")
    assert record.muon_flops == newton_schulz(config) > 0
    assert record.state_bytes == 4 * size
    muon = build_optimizer(build_model(config, CPU), config.optim).parts["muon"]
    assert isinstance(muon, Muon)
    assert record.workspace_bytes == muon.workspace_bytes() > 0


def test_medians_ignore_a_slow_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0] * 4 + [1.0, 2.0, 3.0, 4.0] + [100.0] * 4 + [3.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr(optimizer_module._Timed, "ms", lambda *_: next(times))
    record = bench_optimizer(tiny_config(), CPU, 3)
    assert (record.muon_ms, record.textbook_ms, record.torch_muon_ms, record.adamw_ms) == (3.0, 4.0, 5.0, 6.0)


def test_all_do_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same weights and gradients: the textbook's form and torch's, in float32, end where Muon does."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    made: list[torch.optim.Optimizer] = []
    for cls in (Muon, torch.optim.Muon):
        plain = cls.__init__

        def init(self: Any, *args: Any, plain: Any = plain, **kwargs: Any) -> None:
            plain(self, *args, **kwargs)
            made.append(self)

        monkeypatch.setattr(cls, "__init__", init)
    bench_optimizer(tiny_config("optim.nesterov=false", "optim.ns_steps=7", "optim.momentum=0.8"), CPU, 1)
    first_of_shape: dict[torch.Size, torch.Tensor] = {}
    muon, textbook, *torchs = made
    (mine,), (same,) = muon.param_groups, textbook.param_groups
    for p, q, rows in zip(mine["params"], same["params"], mine["matrix_rows"], strict=True):
        assert p is not q
        assert p.grad is q.grad
        assert 0.3 < float(p.grad.std()) < 3.0  # drawn, not zeros
        torch.testing.assert_close(p, q, rtol=0.0, atol=1e-5)
        for matrix in torch.split(p.detach(), rows):
            first_of_shape.setdefault(matrix.shape, matrix)
    assert len(torchs) == len(first_of_shape)
    expected = {"nesterov": False, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 7, "momentum": 0.8}
    for one in torchs:
        assert expected.items() <= one.param_groups[0].items()
        (matrix,) = one.param_groups[0]["params"]
        torch.testing.assert_close(matrix.detach(), first_of_shape[matrix.shape], rtol=0.0, atol=1e-5)
