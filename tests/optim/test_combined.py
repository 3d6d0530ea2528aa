"""Muon and AdamW behind one object: AdamW against a hand-written one, decay, learning rates, saved state.

Tolerance of the oracle: float64 on both sides and a few operations per entry, so 1e-12.
"""

import copy
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from colakit.build import lm_config
from colakit.config.load import resolve
from colakit.config.schema import OptimConfig
from colakit.model.linear import ParamRole
from colakit.model.lm import LM
from colakit.optim.clock import Clock
from colakit.optim.combined import CombinedOptimizer
from colakit.optim.groups import route
from colakit.optim.muon import Muon
from tests.model.tiny import MUON_PRESETS, PRESETS, tiny_config, tiny_model
from tests.oracles import reference as ref

ROLES = {
    "w": ParamRole("matrix", (4, 3)),
    "table": ParamRole("embedding"),
    "out": ParamRole("head", (6,)),
    "scale": ParamRole("norm"),
    "shift": ParamRole("bias"),
    "g": ParamRole("gate"),
}
SHAPES = {"w": (7, 5), "table": (9, 5), "out": (6, 5), "scale": (5,), "shift": (3,), "g": (4,)}
DECAYED = {"w", "table", "out"}


class Toy(nn.Module):
    """One parameter of each role."""

    def __init__(self) -> None:
        super().__init__()
        for i, (name, shape) in enumerate(SHAPES.items()):
            self.register_parameter(name, nn.Parameter(randn(*shape, seed=i)))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def config(optimizer: str, **changes: Any) -> OptimConfig:
    return OptimConfig(optimizer=optimizer, lr=0.03, weight_decay=0.4, **changes)  # type: ignore[arg-type]


def give_gradients(model: nn.Module, seed: int) -> None:
    for i, p in enumerate(model.parameters()):
        p.grad = randn(*p.shape, seed=1000 * seed + i).to(p.dtype)


def test_adamw_is_the_paper_s_with_decay_on_matrices_embeddings_and_heads_alone() -> None:
    model = Toy()
    optimizer = CombinedOptimizer(model, ROLES, config("adamw", beta1=0.8, beta2=0.7, eps=1e-3))
    slow = {
        name: ref.SlowAdamW(
            p.detach(), lr=0.03, betas=(0.8, 0.7), eps=1e-3, weight_decay=0.4 if name in DECAYED else 0.0
        )
        for name, p in model.named_parameters()
    }
    for step in range(6):
        give_gradients(model, step)
        for name, p in model.named_parameters():
            assert p.grad is not None
            slow[name].step(p.grad)
        optimizer.step()
        for name, p in model.named_parameters():
            torch.testing.assert_close(
                p.detach(), slow[name].w, rtol=0.0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
            )


OPTIONS: list[dict[str, Any]] = [
    {"momentum": 0.9},
    {"nesterov": False},
    {"ns_steps": 4},
    {"ns_coefficients": (2.0, -1.5, 0.5)},
    {"update_scaling": "original"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_with_muon_the_matrices_are_muon_s_and_the_rest_adamw_s(options: dict[str, Any]) -> None:
    model, adamw_model = Toy(), Toy()
    chosen = config("muon", **options)
    both = CombinedOptimizer(model, ROLES, chosen)
    adamw = CombinedOptimizer(adamw_model, ROLES, config("adamw"))
    slow = [
        ref.SlowMuon(
            m,
            lr=0.03,
            momentum=chosen.momentum,
            nesterov=chosen.nesterov,
            weight_decay=0.4,
            ns_steps=chosen.ns_steps,
            ns_coefficients=chosen.ns_coefficients,
            update_scaling=chosen.update_scaling,
        )
        for m in torch.split(model.get_parameter("w").detach(), (4, 3))
    ]
    for step in range(4):
        for m in (model, adamw_model):
            give_gradients(m, step)
        gradient = model.get_parameter("w").grad
        assert gradient is not None
        for one, g in zip(slow, torch.split(gradient, (4, 3)), strict=True):
            one.step(g)
        both.step()
        adamw.step()
    expected = torch.cat([one.w for one in slow])
    torch.testing.assert_close(model.get_parameter("w").detach(), expected, rtol=0.0, atol=1e-10)
    for name in SHAPES.keys() - {"w"}:
        assert torch.equal(model.get_parameter(name), adamw_model.get_parameter(name)), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_decay_touches_no_norm_bias_or_gate(optimizer: str) -> None:
    """With gradients of zero, decay is all that moves anything."""
    model = Toy()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    CombinedOptimizer(model, ROLES, config(optimizer)).step()
    for name, p in model.named_parameters():
        factor = 1 - 0.03 * 0.4 if name in DECAYED else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_set_lr_reaches_every_group(optimizer: str) -> None:
    model = Toy()
    combined = CombinedOptimizer(model, ROLES, config(optimizer))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    groups = [g for part in combined.parts.values() for g in part.param_groups]
    assert len(groups) == (3 if optimizer == "muon" else 2)
    assert {g["lr"] for g in groups} == {0.03}
    combined.set_lr(0.0)
    assert {g["lr"] for g in groups} == {0.0}
    give_gradients(model, 1)
    combined.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name


def test_zero_grad_drops_all_gradients() -> None:
    model = Toy()
    combined = CombinedOptimizer(model, ROLES, config("muon"))
    give_gradients(model, 1)
    combined.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_restored_optimizer_goes_on_bit_for_bit(optimizer: str) -> None:
    lm = tiny_config("cola-fan-muon")
    model = LM(lm)
    model.init_weights(0)
    first = CombinedOptimizer(model, model.param_roles(), config(optimizer))
    for step in range(3):
        give_gradients(model, step)
        first.step()
    other = LM(lm)
    other.load_state_dict(model.state_dict())
    second = CombinedOptimizer(other, other.param_roles(), config(optimizer))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(3, 6):
        for m, o in ((model, first), (other, second)):
            give_gradients(m, step)
            o.step()
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_a_restored_optimizer_without_its_state_would_differ() -> None:
    """Else the test above would prove nothing."""
    models = [Toy(), Toy()]
    optimizers = [CombinedOptimizer(m, ROLES, config("muon")) for m in models]
    give_gradients(models[0], 0)
    optimizers[0].step()
    models[1].load_state_dict(models[0].state_dict())
    for m, o in zip(models, optimizers, strict=True):
        give_gradients(m, 1)
        o.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert not torch.equal(p, q)


def test_a_state_without_one_part_is_refused() -> None:
    toy = Toy()
    combined = CombinedOptimizer(toy, ROLES, config("muon"))
    assert combined.state_dict() == {}, "before a step there is none"
    combined.load_state_dict({})
    give_gradients(toy, 0)
    combined.step()
    state = combined.state_dict()
    assert {name.partition(".")[0] for name in state} == {"muon", "adamw"}
    name = next(iter(state))
    with pytest.raises(ValueError, match=f"{name} is missing"):
        combined.load_state_dict({other: tensor for other, tensor in state.items() if other != name})
    with pytest.raises(ValueError, match=r"muon\.x\.momentum_buffer is of no parameter"):
        combined.load_state_dict({**state, "muon.x.momentum_buffer": torch.zeros(1)})
    with pytest.raises(ValueError, match=rf"{name} has the shape \(2, 1\)"):
        combined.load_state_dict({**state, name: torch.zeros(2, 1)})


@pytest.mark.parametrize("preset", PRESETS)
def test_muon_s_state_is_one_buffer_and_adamw_s_two(preset: str) -> None:
    """Table 1: one times the model against two."""
    model = tiny_model(tiny_config(preset))
    optimizer = "muon" if preset in MUON_PRESETS else "adamw"
    combined = CombinedOptimizer(model, model.param_roles(), config(optimizer))
    give_gradients(model, 0)
    combined.step()
    assert list(combined.parts) == (["muon", "adamw"] if optimizer == "muon" else ["adamw"])
    for part in combined.parts.values():
        for p, state in part.state.items():
            full = [t for t in state.values() if isinstance(t, Tensor) and t.shape == p.shape]
            assert len(full) == (1 if isinstance(part, Muon) else 2)
    held = [id(p) for part in combined.parts.values() for g in part.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_adamw_s_groups_are_torch_s_adamw(preset: str) -> None:
    """Bit for bit, on a model: the same groups, the same decay."""
    model, other = (tiny_model(tiny_config(preset)) for _ in range(2))
    other.load_state_dict(model.state_dict())
    combined = CombinedOptimizer(model, model.param_roles(), config("muon"))
    routing, named = combined.routing, dict(other.named_parameters())
    groups = [
        {"params": [named[n] for n in routing.adamw_decayed], "weight_decay": 0.4, "fused": True},
        {"params": [named[n] for n in routing.adamw_plain], "weight_decay": 0.0, "foreach": True},
    ]
    plain = torch.optim.AdamW(groups, lr=0.03, betas=(0.9, 0.95), eps=1e-8)
    for step in range(3):
        for m in (model, other):
            give_gradients(m, step)
        combined.step()
        plain.step()
    mine = dict(model.named_parameters())
    for name in (*routing.adamw_decayed, *routing.adamw_plain):
        assert torch.equal(mine[name], named[name]), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_its_parts_cost(optimizer: str) -> None:
    """Parameters of both are all; only Newton–Schulz has matrix products; times are those of the steps."""
    model = Toy().float()
    combined = CombinedOptimizer(model, ROLES, config(optimizer))
    assert combined.costs() == ()
    give_gradients(model, 0)
    with FlopCounterMode(display=False) as counter:
        combined.step()
    started = time.perf_counter()
    combined.step()
    combined.step()
    passed_ms = 1000.0 * (time.perf_counter() - started)
    costs = {part.name: part for part in combined.costs(last=2)}
    assert list(costs) == (["muon", "adamw"] if optimizer == "muon" else ["adamw"])
    assert sum(part.parameters for part in costs.values()) == sum(p.numel() for p in model.parameters())
    assert sum(part.flops for part in costs.values()) == counter.get_total_flops()
    assert costs["adamw"].flops == 0
    assert all(part.ms > 0.0 for part in costs.values())
    assert sum(part.ms for part in costs.values()) < passed_ms


def test_costs_are_of_the_last_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    combined = CombinedOptimizer(Toy(), ROLES, config("muon"))
    asked: list[int] = []
    monkeypatch.setattr(Clock, "median_ms", lambda _self, last: asked.append(last) or 3.0)
    assert [part.ms for part in combined.costs(last=7)] == [3.0, 3.0]
    assert asked == [7, 7]


def test_a_model_of_matrices_alone_has_no_adamw() -> None:
    model = nn.Linear(3, 4, bias=False)
    combined = CombinedOptimizer(model, {"weight": ParamRole("matrix", (4,))}, config("muon"))
    assert list(combined.parts) == ["muon"]
    model.weight.grad = torch.ones_like(model.weight)
    combined.step()


@pytest.mark.parametrize("preset", PRESETS)
def test_rows_that_adamw_s_fused_kernel_is_given_hold_whole_vectors(preset: str) -> None:
    """At its full size: wherever several processes cut them, no number is rounded otherwise."""
    with torch.device("meta"):
        model = LM(lm_config(resolve(preset).config.model, "sdpa"))
    named = dict(model.named_parameters())
    routing = route(model, model.param_roles(), muon=False)  # by which all matrices are AdamW's
    assert all(named[name].shape[1] % 16 == 0 for name in routing.adamw_decayed)
    assert all(named[name].ndim == 1 for name in routing.adamw_plain), "which another kernel updates"
