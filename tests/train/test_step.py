"""One optimizer step: accumulation, weighting by real tokens, clipping, the finite check."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from colakit.build import Machine, build_model, build_optimizer
from colakit.config.load import resolve
from colakit.config.schema import RunConfig
from colakit.data.loader import Batch
from colakit.parallel.wrap import Replica
from colakit.train import step as step_module
from colakit.train.step import TrainStep

CPU = Machine(torch.device("cpu"), torch.float32)
TINY = ("d_model=24", "n_layers=2", "n_heads=3", "n_kv_heads=3", "d_ff=40", "vocab_size=61", "seq_len=10")


def tiny_config(preset: str = "cola-fan-muon", *sets: str) -> RunConfig:
    return resolve(preset, smoke_run=True, sets=[*(f"model.{s}" for s in TINY), *sets]).config


def make_step(config: RunConfig, lr: float = 1e-2) -> TrainStep:
    model = build_model(config, CPU)
    model.train()
    optimizer = build_optimizer(model, config.optim)
    return TrainStep(model, optimizer, CPU, lambda _: lr, config.optim.grad_clip, Replica(model))


def make_batch(rows: int, ignored: dict[int, int] | None = None, seed: int = 0) -> Batch:
    """A batch of `rows` sequences; `ignored` maps a row to how many of its last targets do not count."""
    tokens = torch.randint(61, (rows, 11), generator=torch.Generator().manual_seed(seed))
    targets = tokens[:, 1:].clone()
    for row, count in (ignored or {}).items():
        targets[row, -count:] = -100
    return Batch(tokens=tokens[:, :-1].clone(), targets=targets)


def split(batch: Batch, rows: int) -> list[Batch]:
    parts = zip(batch.tokens.split(rows), batch.targets.split(rows), strict=True)
    return [Batch(tokens=tokens, targets=targets) for tokens, targets in parts]


def snapshot(step: TrainStep) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in step.model.named_parameters()}


@pytest.mark.parametrize("preset", ["cola-fan-muon", "original"])
def test_eight_at_once_equals_two_by_four_with_unequal_real_tokens(preset: str) -> None:
    config = tiny_config(preset)
    batch = make_batch(8, ignored={0: 9, 1: 7, 5: 4})
    whole, parts = make_step(config), make_step(config)
    for i in range(3):
        one = whole(i, [batch])
        four = parts(i, split(batch, 2))
        assert one.tokens == four.tokens == 8 * 10 - 20
        # float32 sums in another order: relative 1e-6, a hundred times that after Muon's iterations.
        assert four.loss == pytest.approx(one.loss, rel=1e-5)
        assert four.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
    for name, p in whole.model.named_parameters():
        torch.testing.assert_close(parts.model.get_parameter(name), p, rtol=1e-3, atol=1e-4)


def test_loss_is_the_mean_over_real_tokens_before_the_update() -> None:
    config = tiny_config()
    step = make_step(config)
    batch = make_batch(4, ignored={2: 6})
    with torch.no_grad():
        logits = step.model(batch.tokens)
    expected = F.cross_entropy(logits.flatten(0, 1).double(), batch.targets.flatten(), ignore_index=-100)
    right = (logits.argmax(-1) == batch.targets).sum().item() / (4 * 10 - 6)
    result = step(0, [batch])
    assert result.loss == pytest.approx(expected.item(), rel=1e-6)
    assert result.accuracy == pytest.approx(right)
    assert result.tokens == 4 * 10 - 6


@pytest.mark.parametrize("preset", ["cola-fan-muon", "cola-m"])
def test_a_batch_that_says_where_documents_begin_trains_on_each_by_itself(preset: str) -> None:
    """One row of two documents is two rows of one: the same loss, gradient and weights; rows read whole are not."""
    config = tiny_config(preset)
    tokens = make_batch(2).tokens  # two documents of five tokens in each row
    targets = tokens.roll(-1, dims=1)
    starts = (torch.arange(10) % 5 == 0).expand(2, 10)
    apart, whole, alone = make_step(config), make_step(config), make_step(config)
    for i in range(3):
        own = apart(i, [Batch(tokens, targets, starts)])
        shared = whole(i, [Batch(tokens, targets)])
        expected = alone(i, [Batch(tokens.view(4, 5), targets.view(4, 5))])
        assert own.loss == pytest.approx(expected.loss, rel=1e-5)
        assert own.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
        assert abs(shared.loss - own.loss) > 1e-3
    for name, p in alone.model.named_parameters():
        torch.testing.assert_close(apart.model.get_parameter(name), p, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("share", [0.01, 0.9, 1.1])
def test_gradients_are_clipped_to_the_global_norm(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """`share` of what it is; where that is no less, they are not read again."""
    whole = make_step(tiny_config("original"))(0, [make_batch(4)]).grad_norm
    step = make_step(tiny_config("original", f"optim.grad_clip={share * whole}"))
    clipped: list[bool] = []
    honest = torch.nn.utils.clip_grads_with_norm_
    monkeypatch.setattr("torch.nn.utils.clip_grads_with_norm_", lambda *a: clipped.append(True) or honest(*a))
    seen: list[float] = []
    inner = step.optimizer.step

    def spy() -> None:
        grads = [p.grad for p in step.model.parameters() if p.grad is not None]
        seen.append(torch.stack([g.norm() for g in grads]).norm().item())
        inner()

    step.optimizer.step = spy  # type: ignore[method-assign]
    result = step(0, [make_batch(4)])
    assert result.grad_norm == whole
    assert seen == [pytest.approx(min(share, 1.0) * whole, rel=1e-3)]
    assert clipped == [True] * (share < 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("preset", ["cola-fan-muon", "cola-fan"])
def test_bad_gradient_reaches_neither_weights_nor_optimizer_state(preset: str, value: float) -> None:
    step = make_step(tiny_config(preset))
    step(0, [make_batch(4)])
    weights = snapshot(step)
    state = [t.clone() for t in _state_tensors(step)]
    handle = step.model.norm.weight.register_hook(lambda g: g * value)
    result = step(1, [make_batch(4, seed=1)])
    handle.remove()
    assert result.skipped
    assert not math.isfinite(result.grad_norm)
    assert all(torch.equal(p, weights[name]) for name, p in step.model.named_parameters())
    assert all(torch.equal(a, b) for a, b in zip(_state_tensors(step), state, strict=True))
    after = step(2, [make_batch(4, seed=2)])
    assert not after.skipped
    assert not all(torch.equal(p, weights[name]) for name, p in step.model.named_parameters())


def _state_tensors(step: TrainStep) -> list[torch.Tensor]:
    return [
        value
        for part in step.optimizer.parts.values()
        for state in part.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]


def test_the_schedule_reaches_the_optimizer() -> None:
    config = tiny_config()
    model = build_model(config, CPU)
    optimizer = build_optimizer(model, config.optim)
    step = TrainStep(model, optimizer, CPU, lambda s: 0.5 ** (s + 1), 1.0, Replica(model))
    assert [step(i, [make_batch(2)]).lr for i in range(3)] == [0.5, 0.25, 0.125]
    assert {g["lr"] for part in optimizer.parts.values() for g in part.param_groups} == {0.125}


def test_one_host_sync_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a tensor's values waits for the device: once per step, however many micro-batches there are.

    AdamW's counts of steps are on the host, where they are read.
    """
    step = make_step(tiny_config())
    step(0, split(make_batch(8), 2))
    counts = {id(tensor) for name, _, tensor in step.optimizer.entries() if name.endswith(".step")}
    reads: list[str] = []
    for name in ("tolist", "item"):
        original = getattr(torch.Tensor, name)

        def counted(self: torch.Tensor, *, _name: str = name, _original: Callable[..., object] = original) -> object:
            if id(self) not in counts:
                reads.append(_name)
            return _original(self)

        monkeypatch.setattr(torch.Tensor, name, counted)
    step(1, split(make_batch(8), 2))
    assert reads == ["tolist"]


@pytest.mark.parametrize(("device", "asked"), [("cpu", 1), ("meta", 0)])
def test_a_step_on_a_cpu_keeps_what_it_frees(monkeypatch: pytest.MonkeyPatch, device: str, asked: int) -> None:
    told: list[None] = []
    monkeypatch.setattr(step_module, "keep_freed_memory", lambda: told.append(None))
    machine = Machine(torch.device(device), torch.float32)
    TrainStep.of(tiny_config(), build_model(tiny_config(), machine), machine)
    assert len(told) == asked
