"""CoLA-M: the same numbers, bit for bit, from fewer kept activations.

Bitwise, since recomputation repeats the same kernels on the same values, dropout masks included.
"""

import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from colakit.loss import loss_sums
from colakit.model import remat
from colakit.model.config import LMConfig
from colakit.model.documents import Documents
from tests.model.tiny import BATCH, TIME, tiny_config, tiny_model, tiny_tokens

aten = torch.ops.aten


class Ops(TorchDispatchMode):
    """Counts the operators that run, and remembers what each one produced without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[Any] = Counter()
        self.made: dict[int, tuple[str, tuple[int, ...], StorageWeakRef]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count[func] += 1
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in given:  # not a view, not in place
                ref = StorageWeakRef(t.untyped_storage())
                self.made[ref.cdata] = (func.overloadpacket.__name__, tuple(t.shape), ref)
        return out

    def alive(self) -> list[tuple[str, tuple[int, ...]]]:
        """Operator and shape of each storage made under this mode that still stands."""
        return sorted((op, shape) for op, shape, ref in self.made.values() if not ref.expired())


def without_remat(preset: str, *, with_dropout: bool) -> LMConfig:
    """The preset, with every dropout that its kind of layer has, or none."""
    p, p_fan = (0.2, 0.12) if with_dropout else (0.0, 0.0)
    config = replace(tiny_config(preset), remat="none", attention="sdpa", attention_dropout=p)
    config = replace(config, post_attention_dropout=p, final_dropout=p)
    return replace(config, fan_dropout=p_fan if config.fan == "qkv" else 0.0, fan_dropout_growth=0.0)


def outputs_and_gradients(config: LMConfig, documents: Documents | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    model, tokens = tiny_model(config).float().train(), tiny_tokens(config)
    torch.manual_seed(11)
    logits = model(tokens, documents)
    targets = tokens.roll(-1, dims=1)
    loss_sums(*model.logit_factors(model.hidden(tokens, documents)), targets).nll.backward()
    return logits, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("with_dropout", [False, True])
@pytest.mark.parametrize("preset", ["cola", "cola-smollm2", "cola-fan", "cola-fan-atf", "refined-tied"])
def test_cola_m_changes_no_output_and_no_gradient(preset: str, with_dropout: bool, isolated: bool) -> None:
    plain = without_remat(preset, with_dropout=with_dropout)
    documents = Documents.of(torch.arange(BATCH * TIME).view(BATCH, TIME) % 4 == 0) if isolated else None
    logits, gradients = outputs_and_gradients(plain, documents)
    logits_m, gradients_m = outputs_and_gradients(replace(plain, remat="cola_m"), documents)
    assert torch.equal(logits, logits_m)
    assert gradients.keys() == gradients_m.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, gradients_m[name]), name


def test_cola_m_is_a_choice_of_the_preset() -> None:
    assert tiny_model(tiny_config("cola-m")).run_block is remat.cola_m
    assert tiny_model(tiny_config("cola-smollm2")).run_block is remat.plain


@pytest.mark.parametrize("preset", ["cola-m", "cola-fan", "cola-fan-dropout", "refined-tied"])
def test_what_stays_after_the_forward_pass_is_what_the_a_s_produced(preset: str) -> None:
    """Of everything a block computes, its output and four A products stand; without CoLA-M, many times as much."""
    config = tiny_config(preset)
    block = tiny_model(config).train().blocks[1]
    x = torch.randn(BATCH, TIME, config.d_model, dtype=torch.float64, requires_grad=True)
    tokens, branches = BATCH * TIME, 6 if config.fan == "qkv" else 3
    with Ops() as ops:
        out = remat.cola_m(block, x)
    kept = ops.alive()
    a_shapes = [(tokens, branches * 12), (tokens, 12), (tokens, 12), (tokens, 11)]  # qkv, o, gate_up, down
    assert sorted(shape for op, shape in kept if op == "mm") == sorted(a_shapes)
    rest = [(op, shape) for op, shape in kept if op != "mm"]
    assert len(rest) == 1, rest
    assert rest[0][1] == tuple(out.shape)

    with Ops() as plain_ops:
        plain_out = remat.plain(block, x)
    assert _elements(plain_ops.alive()) > 3 * _elements(kept)
    assert plain_out.shape == out.shape


@pytest.mark.parametrize("preset", ["cola-m", "cola-fan", "cola-fan-dropout"])
def test_the_backward_pass_recomputes_b_products_and_no_a_product(preset: str) -> None:
    """Gradients are mm's too, so the A's of the recomputation are counted against a plain backward pass."""
    config = tiny_config(preset)
    counts = {}
    for name, run in (("plain", remat.plain), ("cola_m", remat.cola_m)):
        block = tiny_model(config).train().blocks[1]
        x = torch.randn(BATCH, TIME, config.d_model, dtype=torch.float64, requires_grad=True)
        with Ops() as forward:
            out = run(block, x)
        with Ops() as backward:
            out.sum().backward()
        counts[name] = (forward.count, backward.count)
    a_products = 4
    b_products = 9 if config.fan == "qkv" else 6
    for forward_count, _ in counts.values():
        assert forward_count[aten.mm.default] == a_products
        assert forward_count[aten.addmm.default] == b_products
    plain, cola_m = counts["plain"][1], counts["cola_m"][1]
    assert cola_m[aten.mm.default] == plain[aten.mm.default]
    assert plain[aten.addmm.default] == 0
    # The last product, down_proj's B, has nobody to read its output again: torch stops before it.
    assert cola_m[aten.addmm.default] == b_products - 1
    assert cola_m[aten.gelu.default] == a_products


def test_nothing_outlives_the_backward_pass() -> None:
    config = tiny_config("cola-m")
    model = tiny_model(config).train()
    with Ops() as ops:
        loss = model(tiny_tokens(config)).sum()
        loss.backward()
    gone = weakref.ref(loss)
    del loss
    assert gone() is None
    gradients = {p.grad.untyped_storage()._cdata for p in model.parameters() if p.grad is not None}
    left = [m for m in ops.made.values() if not m[2].expired() and m[2].cdata not in gradients]
    assert left == []


def _elements(made: list[tuple[str, tuple[int, ...]]]) -> int:
    return sum(torch.Size(shape).numel() for _, shape in made)
