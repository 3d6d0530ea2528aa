"""Single layers against the slow references, forward and gradients, in float64.

Tolerance: both sides compute in float64 (2.2e-16) and differ in the order of sums of fewer than a hundred terms of size
near 1, so they agree to about 1e-14; 1e-11 leaves room, and no wrong formula comes that close.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from colakit.model.block import GatedResidual
from colakit.model.linear import FAN, CoLA, CoLAFAN, Dense
from colakit.model.mlp import MLP
from colakit.model.norm import L2Norm, RMSNorm
from colakit.model.rope import Rotary
from tests.oracles import reference as ref

TIGHT = {"rtol": 0.0, "atol": 1e-11}
D_IN, RANK, LEAD = 10, 3, (2, 5)
PARTS = {"one": 14, "two": 9, "three": 7}  # unequal widths: a wrong split or order shows


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.5)
    return module


def inputs(*shape: int, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def leaves(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}


def agree(module: nn.Module, oracle: Callable[[Tensor, dict[str, Tensor]], tuple[Tensor, ...]], x: Tensor) -> None:
    """Compare outputs, and the gradients of a random functional of them, of every parameter and of the input."""
    own = module(x)
    own = own if isinstance(own, tuple) else (own,)
    params, y = leaves(module), x.detach().clone().requires_grad_()
    expected = oracle(y, params)
    assert [o.shape for o in own] == [e.shape for e in expected]
    for o, e in zip(own, expected, strict=True):
        torch.testing.assert_close(o, e, **TIGHT)
    weights = [inputs(*o.shape, seed=11 + i).detach() for i, o in enumerate(own)]
    sum((o * w).sum() for o, w in zip(own, weights, strict=True)).backward()
    sum((e * w).sum() for e, w in zip(expected, weights, strict=True)).backward()
    torch.testing.assert_close(x.grad, y.grad, **TIGHT)
    for name, p in module.named_parameters():
        assert p.grad is not None, name
        torch.testing.assert_close(p.grad, params[name].grad, **TIGHT, msg=lambda m, n=name: f"{n}: {m}")


def test_dense_is_a_plain_product_per_part() -> None:
    def oracle(x: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, ...]:
        w = p["weight"]
        return tuple(ref.each_vector(lambda v, r=r: ref.dense(v, w[r]), x) for r in _row_ranges(PARTS.values()))

    agree(randomise(Dense(D_IN, PARTS)), oracle, inputs(*LEAD, D_IN))


def test_cola_is_algorithm_3_per_part() -> None:
    def oracle(x: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, ...]:
        a = p["a"]
        return tuple(
            ref.each_vector(
                lambda v, i=i: ref.cola(v, a[i * RANK : (i + 1) * RANK], p[f"b.{i}"], p[f"bias.{i}"]),
                x,
            )
            for i in range(len(PARTS))
        )

    agree(randomise(CoLA(D_IN, PARTS, RANK)), oracle, inputs(*LEAD, D_IN))


def test_cola_fan_is_algorithm_1_per_part() -> None:
    def oracle(x: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, ...]:
        parts = []
        for i in range(len(PARTS)):
            j, k = 2 * i, 2 * i + 1
            named = {
                "a_p": p["a"][j * RANK : (j + 1) * RANK],
                "b_p": p[f"b.{j}"],
                "bias_p": p[f"bias.{j}"],
                "a_np": p["a"][k * RANK : (k + 1) * RANK],
                "b_np": p[f"b.{k}"],
                "bias_np": p[f"bias.{k}"],
            }
            parts.append(ref.each_vector(lambda v, named=named: ref.cola_fan(v, named), x))
        return tuple(parts)

    layer = CoLAFAN(D_IN, PARTS, RANK, fan_ratio=0.15, dropout=0.0)
    assert [tuple(b.shape) for b in layer.b] == [(2, 3), (10, 3), (1, 3), (7, 3), (1, 3), (5, 3)]
    agree(randomise(layer), oracle, inputs(*LEAD, D_IN))


def test_cola_fan_drops_between_activation_and_b_in_both_branches() -> None:
    """A stand-in for dropout that multiplies by 3 shows where it sits: B, bias and cosines tell places apart."""

    class Triple(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 3.0 * x

    layer = randomise(CoLAFAN(D_IN, {"one": 14}, RANK, fan_ratio=0.15, dropout=0.5))
    assert isinstance(layer, CoLAFAN)
    layer.dropout = Triple()
    x = inputs(D_IN).detach()
    p_proj = layer.b[0] @ (3.0 * ref.gelu(layer.a[:RANK] @ x)) + layer.bias[0]
    np_proj = layer.b[1] @ (3.0 * ref.gelu(layer.a[RANK:] @ x)) + layer.bias[1]
    torch.testing.assert_close(layer(x)[0], torch.cat([p_proj.cos(), p_proj.sin(), np_proj]), **TIGHT)


def test_fan_layer() -> None:
    def oracle(x: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return (ref.each_vector(lambda v: ref.fan(v, p["w_p"], p["w_n"], p["bias"]), x),)

    agree(randomise(FAN(D_IN, 0.25)), oracle, inputs(*LEAD, D_IN))


def test_swiglu() -> None:
    d, d_ff = 10, 6

    def oracle(x: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, ...]:
        named = {
            "gate_up_proj.a": p["gate_up.a"],
            "gate_up_proj.b": p["gate_up.b.0"],
            "gate_up_proj.bias": p["gate_up.bias.0"],
            "down_proj.weight": p["down.weight"],
        }
        return (ref.each_vector(lambda v: ref.swiglu(v, named), x),)

    mlp = MLP(CoLA(d, {"gate_up_proj": 2 * d_ff}, RANK), Dense(d_ff, {"down_proj": d}))
    agree(randomise(mlp), oracle, inputs(*LEAD, d))


@pytest.mark.parametrize("eps", [1e-8, 1e-5])
def test_rms_norm_on_small_inputs_where_eps_weighs(eps: float) -> None:
    def oracle(x: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return (ref.each_vector(lambda v: ref.rms_norm(v, p["weight"], eps), 1e-3 * x),)

    class Shrunk(RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(1e-3 * x)

    agree(randomise(Shrunk(D_IN, eps=eps)), oracle, inputs(*LEAD, D_IN))


def test_l2_norm() -> None:
    agree(L2Norm(), lambda x, _: (ref.each_vector(ref.l2_norm, x),), inputs(*LEAD, D_IN))


def test_gated_residual() -> None:
    y = inputs(*LEAD, D_IN, seed=3).detach()

    class OfY(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = GatedResidual(D_IN)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, y)

    def oracle(x: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return (x + y / (1.0 + torch.exp(-p["inner.gate"])),)

    assert torch.equal(GatedResidual(D_IN).gate, torch.zeros(D_IN))
    agree(randomise(OfY()), oracle, inputs(*LEAD, D_IN))


def test_rope_turns_pairs_half_a_head_apart() -> None:
    theta, e = 100.0, 6

    def oracle(x: Tensor, _: dict[str, Tensor]) -> tuple[Tensor, ...]:
        rows = [
            torch.stack([ref.rope(x[b, h, t], t, theta, table=torch.float32) for t in range(5)])
            for b in range(2)
            for h in range(3)
        ]
        return (torch.stack(rows).reshape(2, 3, 5, e),)

    agree(Rotary(e, seq_len=8, theta=theta).double(), oracle, inputs(2, 3, 5, e))


def test_rope_tables_are_exact_to_float32() -> None:
    """At position 1000 angles computed in float32 would be off by some 1e-5; the tables are rounded once."""
    rotary = Rotary(64, seq_len=1024, theta=10_000.0)
    for i in range(32):
        for t in (1, 17, 1000, 1023):
            angle = t * 10_000.0 ** (-2.0 * i / 64)
            assert abs(float(rotary.cos[t, i]) - math.cos(angle)) <= 2.0**-25 + 1e-12
            assert abs(float(rotary.sin[t, i]) - math.sin(angle)) <= 2.0**-25 + 1e-12
    frequencies = 10_000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float32) / 64)
    exact = torch.tensor([10_000.0 ** (-2.0 * i / 64) for i in range(32)], dtype=torch.float64)
    worst = (1000 * frequencies - (1000 * exact)).abs().max()
    assert 1e-5 < float(worst) < 1e-4


def _row_ranges(widths: object) -> list[slice]:
    ranges, start = [], 0
    for width in widths:  # type: ignore[attr-defined]
        ranges.append(slice(start, start + width))
        start += width
    return ranges
