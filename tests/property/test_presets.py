"""What must hold for every preset, and for every norm placement, at a tiny size with all dimensions different."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from colakit.loss import IGNORE, loss_sums
from colakit.model.block import GatedResidual
from colakit.model.config import LMConfig
from colakit.model.lm import LM
from colakit.optim.groups import route
from tests.model.tiny import (
    BATCH,
    PRESETS,
    TIME,
    published_gradients,
    tiny_config,
    tiny_model,
    tiny_tokens,
)

OTHERS = {s: tiny_config("cola-fan-dropout", s) for s in ("norm=pre", "norm=post", "norm=listing", "qkv_norm=l2")}
OTHERS["attention=reference"] = replace(tiny_config("cola-fan-dropout"), attention="reference")
VARIANTS = [pytest.param(tiny_config(name), id=name) for name in PRESETS] + [
    pytest.param(config, id=name) for name, config in OTHERS.items()
]
HEADS, HEAD_DIM = 6, 8


def has_dropout(config: LMConfig) -> bool:
    rates = (config.fan_dropout, config.post_attention_dropout, config.final_dropout, config.attention_dropout)
    return any(rate > 0 for rate in rates)


@pytest.mark.parametrize("config", VARIANTS)
def test_a_later_token_never_changes_earlier_logits(config: LMConfig) -> None:
    """It does change the logits from its own position on. Masked terms are exact zeros, so 1e-12 is ample."""
    model, tokens = tiny_model(config).eval(), tiny_tokens(config)
    with torch.no_grad():
        before = model(tokens)
        for t in range(TIME):
            changed = tokens.clone()
            changed[:, t] = (changed[:, t] + 1 + t) % config.vocab_size
            difference = (model(changed) - before).abs().amax(dim=(0, 2))  # [T]
            assert float(difference[:t].sum()) < 1e-12
            assert bool((difference[t:] > 1e-9).all())


@pytest.mark.parametrize("config", VARIANTS)
def test_sequences_of_a_batch_are_independent(config: LMConfig) -> None:
    model, tokens = tiny_model(config).eval(), tiny_tokens(config)
    one_by_one = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(model(tokens), one_by_one, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("config", VARIANTS)
def test_shorter_input_gives_the_same_prefix(config: LMConfig) -> None:
    model, tokens = tiny_model(config).eval(), tiny_tokens(config)
    for t in (1, 4):
        torch.testing.assert_close(model(tokens[:, :t]), model(tokens)[:, :t], rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("config", VARIANTS)
def test_two_evaluations_are_identical_and_draw_nothing(config: LMConfig) -> None:
    model, tokens = tiny_model(config).eval(), tiny_tokens(config)
    before = torch.get_rng_state()
    first = model(tokens)
    assert torch.equal(model(tokens), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("config", VARIANTS)
def test_dropout_is_active_in_training_where_the_preset_has_it(config: LMConfig) -> None:
    model, tokens = tiny_model(config).train(), tiny_tokens(config)
    torch.manual_seed(0)
    assert torch.equal(model(tokens), model(tokens)) != has_dropout(config)


@pytest.mark.parametrize("config", VARIANTS)
def test_attention_dropout_reaches_the_kernel_in_training_alone(config: LMConfig) -> None:
    """A known trap: attention dropout that stays on in evaluation."""
    model, tokens = tiny_model(replace(config, attention_dropout=0.3)), tiny_tokens(config)
    seen: list[float] = []

    def spy(inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda q, k, v, p, packed: (seen.append(p), inner(q, k, v, p, packed))[1]

    for block in model.blocks:
        block.attention.attend = spy(block.attention.attend)
    model.eval()(tokens)
    assert seen == [0.0] * 3
    model.train()(tokens)
    assert seen[3:] == [0.3] * 3


@pytest.mark.parametrize("config", VARIANTS)
def test_every_parameter_has_one_role_and_one_group(config: LMConfig) -> None:
    model = LM(config)
    roles, parameters = model.param_roles(), dict(model.named_parameters())
    assert roles.keys() == parameters.keys()
    for muon in (False, True):
        routing = route(model, roles, muon=muon)
        names = routing.muon + routing.adamw_decayed + routing.adamw_plain
        assert sorted(names) == sorted(parameters)
        assert bool(routing.muon) == muon


@pytest.mark.parametrize("config", VARIANTS)
def test_every_role_is_what_the_parameter_is(config: LMConfig) -> None:
    """Told from the modules that own the parameters and not from names."""
    model = LM(config)
    owner = {id(p): m for m in model.modules() for p in m.parameters(recurse=False)}
    head = {id(p) for p in model.output.parameters()} if model.output is not None else set()
    parameters = dict(model.named_parameters())
    for name, role in model.param_roles().items():
        p = parameters[name]
        module = owner[id(p)]
        if isinstance(module, nn.Embedding):
            expected = "embedding"
        elif isinstance(module, nn.RMSNorm):
            expected = "norm"
        elif isinstance(module, GatedResidual):
            expected = "gate"
        elif p.ndim == 1:
            expected = "bias"
        else:
            expected = "head" if id(p) in head else "matrix"
        assert role.role == expected, name
        assert sum(role.matrix_rows) == (p.shape[0] if p.ndim == 2 and role.role in ("matrix", "head") else 0), name


@pytest.mark.parametrize(
    ("preset", "rows"),
    [
        ("original", {"qkv": (48, 16, 16), "out": (48,), "gate_up": (44, 44), "down": (48,)}),
        (
            "cola-smollm2",
            {
                "qkv": (12, 12, 12, (48,), (16,), (16,)),
                "out": (12, (48,)),
                "gate_up": (12, (88,)),
                "down": (11, (48,)),
            },
        ),
        (
            "cola-fan",
            {
                "qkv": (12,) * 6 + ((7,), (34,), (2,), (12,), (2,), (12,)),
                "out": (12, (48,)),
                "gate_up": (12, (88,)),
                "down": (11, (48,)),
            },
        ),
    ],
)
def test_the_matrices_of_a_block_are_those_of_paper_md(preset: str, rows: dict[str, tuple[object, ...]]) -> None:
    """Each A and each B is one matrix; a dense gate_up is two, a low-rank gate_up B one. B's are nested here."""
    found: dict[str, list[object]] = {}
    for name, role in LM(tiny_config(preset)).param_roles().items():
        if name.startswith("blocks.0.") and role.role == "matrix":
            parts = name.split(".")
            if parts[4] == "b":
                found.setdefault(parts[3], []).append(role.matrix_rows)
            else:
                found.setdefault(parts[3], []).extend(role.matrix_rows)
    assert {k: tuple(v) for k, v in found.items()} == rows


@pytest.mark.parametrize("config", VARIANTS)
def test_gradients_reach_every_published_tensor(config: LMConfig) -> None:
    model, tokens = tiny_model(config, generic=False).eval(), tiny_tokens(config)
    targets = tokens.roll(-1, dims=1)
    loss_sums(*model.logit_factors(model.hidden(tokens)), targets).nll.backward()
    gradients = published_gradients(model)
    assert len(gradients) > 20
    for name, gradient in gradients.items():
        assert bool(torch.isfinite(gradient).all()), name
        assert float(gradient.abs().max()) > 1e-8, name


@pytest.mark.parametrize("config", VARIANTS)
def test_ignored_targets_give_no_gradient(config: LMConfig) -> None:
    model, tokens = tiny_model(config).eval(), tiny_tokens(config)
    targets = torch.full_like(tokens, IGNORE)
    loss_sums(*model.logit_factors(model.hidden(tokens)), targets).nll.backward()
    assert not any(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("config", VARIANTS)
def test_perturbing_one_query_head_changes_that_head_alone(config: LMConfig) -> None:
    """A known trap: query heads tiled per group, so that weights of one head move another."""
    model = tiny_model(config).eval()
    before = head_outputs(model, config)
    for head in range(2, HEADS):  # CoLA_FAN: heads 0 and 1 share rows of B_p, one for a cosine and a sine
        rows = rows_of_head(model, head)
        with torch.no_grad():
            kept = rows.clone()
            rows += torch.randn(rows.shape, generator=torch.Generator().manual_seed(head), dtype=rows.dtype)
        moved = (head_outputs(model, config) - before).abs().amax(dim=(0, 1, 3))  # [H]
        assert [float(m) > 1e-6 for m in moved] == [h == head for h in range(HEADS)], moved
        assert float(moved.sum() - moved[head]) == 0.0
        with torch.no_grad():
            rows.copy_(kept)


@pytest.mark.parametrize("config", VARIANTS)
def test_perturbing_one_value_head_changes_its_query_heads_alone(config: LMConfig) -> None:
    model = tiny_model(config).eval()
    before = head_outputs(model, config)
    state = model.state_dict()
    name = "blocks.0.attention.v_proj"
    matrix = next(state[n] for n in (f"{name}.b_np", f"{name}.b", f"{name}.weight") if n in state)
    with torch.no_grad():
        matrix[-4:] += 1.0  # within the second of two heads
    moved = (head_outputs(model, config) - before).abs().amax(dim=(0, 1, 3))
    assert [float(m) > 1e-6 for m in moved] == [False, False, False, True, True, True]


@pytest.mark.parametrize("config", VARIANTS)
def test_no_two_query_heads_compute_the_same(config: LMConfig) -> None:
    """The same trap seen from outside; position 0 attends to itself alone, so heads of one group agree there."""
    out = head_outputs(tiny_model(config).eval(), config)[:, 1:]
    for one in range(HEADS):
        for other in range(one):
            assert float((out[:, :, one] - out[:, :, other]).abs().amax(dim=(0, 2)).min()) > 1e-4


def head_outputs(model: LM, config: LMConfig) -> Tensor:
    """What the heads of block 0 hand to o_proj: [B, T, H, E]."""
    seen: list[Tensor] = []
    hook = model.blocks[0].attention.out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model.hidden(tiny_tokens(config))
    hook.remove()
    return seen[0].reshape(BATCH, TIME, HEADS, HEAD_DIM)


def rows_of_head(model: LM, head: int) -> Tensor:
    """Rows that make features of this query head and of no other, as a view into the model. Needs head ≥ 2."""
    state = model.state_dict()
    name, start = "blocks.0.attention.q_proj", head * HEAD_DIM
    for suffix, offset in (("b_np", 2 * 7), ("b", 0), ("weight", 0)):  # CoLA_FAN's rest begins after 7 cosines, 7 sines
        if f"{name}.{suffix}" in state:
            return state[f"{name}.{suffix}"][start - offset : start - offset + HEAD_DIM]
    raise AssertionError(sorted(state))
