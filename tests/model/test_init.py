"""Initialisation: a function of the seed, and a residual stream that starts and stays near mean square 1."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from colakit.model import init
from colakit.model.config import LMConfig
from colakit.model.linear import FAN, CoLA, CoLAFAN, Dense
from colakit.model.lm import LM
from tests.model.tiny import PRESETS, full_config, tiny_config, tiny_model, tiny_tokens, without_dropout

SHALLOW_VOCAB = 512


def widths(preset: str, *sets: str) -> LMConfig:
    """The full model, as far as the residual stream in evaluation is concerned."""
    config = without_dropout(full_config(preset, *sets))
    return replace(config, vocab_size=SHALLOW_VOCAB, seq_len=32, remat="none", tie_embeddings=False)


def distinct_models() -> list[object]:
    """Every preset's full-width model once, under the names that share it, and the other norm placements."""
    configs: dict[LMConfig, list[str]] = {}
    for preset in PRESETS:
        configs.setdefault(widths(preset), []).append(preset)
    for norm in ("pre", "post", "listing"):
        configs.setdefault(widths("cola-smollm2", f"norm={norm}"), []).append(norm)
    return [pytest.param(config, id="+".join(names)) for config, names in configs.items()]


@pytest.mark.parametrize("config", distinct_models())
def test_the_residual_stream_stays_near_1_through_12_blocks(config: LMConfig) -> None:
    assert config.d_model == 768
    assert config.n_layers == 12
    with torch.device("meta"):  # not drawn twice
        model = LM(config)
    model.to_empty(device="cpu")
    _restore_what_is_not_drawn(model)
    model.init_weights(0)
    sizes: list[float] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _i, out: sizes.append(out.square().mean().sqrt().item()))
    model.eval()
    with torch.no_grad():
        tokens = torch.randint(SHALLOW_VOCAB, (1, 32), generator=torch.Generator().manual_seed(1))
        x = model.tok_embed(tokens) * math.sqrt(768)
        assert 0.9 < x.square().mean().sqrt().item() < 1.1
        model.hidden(tokens)
    assert len(sizes) == 12
    assert all(0.25 < size < 4.0 for size in sizes), sizes


@pytest.mark.parametrize("preset", [p for p in PRESETS if not full_config(p).tie_embeddings])
def test_the_first_loss_of_an_untied_head_is_that_of_a_uniform_guess(preset: str) -> None:
    """ln V plus half the variance of the logits, 0.005."""
    config = tiny_config(preset)
    model = tiny_model(config, generic=False).eval()
    tokens = tiny_tokens(config)
    targets = torch.randint(67, tokens.shape, generator=torch.Generator().manual_seed(9))
    loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    assert abs(float(loss.detach()) - math.log(67)) < 0.1


def test_the_first_loss_of_a_tied_head_is_near_a_uniform_guess() -> None:
    """ln(V + e⁴) at most: the token being read starts near a logit of 4, which is seldom right."""
    model = LM(replace(widths("refined-tied"), n_layers=12, tie_embeddings=True))
    model.init_weights(0)
    model.eval()
    tokens = torch.randint(SHALLOW_VOCAB, (2, 33), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        logits = model(tokens[:, :-1])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert math.log(SHALLOW_VOCAB) - 0.1 < float(loss) < math.log(SHALLOW_VOCAB + math.exp(4)) + 0.1


@pytest.mark.parametrize("preset", PRESETS)
def test_weights_are_a_function_of_the_seed_and_of_no_global_state(preset: str) -> None:
    models = []
    for global_seed, seed in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(global_seed)
        model = LM(tiny_config(preset))
        before = torch.get_rng_state()
        model.init_weights(seed)
        assert torch.equal(torch.get_rng_state(), before)
        models.append(model.state_dict())
    for name in models[0]:
        assert torch.equal(models[0][name], models[1][name]), name
        is_matrix = models[0][name].ndim == 2
        assert torch.equal(models[0][name], models[2][name]) != is_matrix, name


@pytest.mark.parametrize("preset", PRESETS)
def test_every_projection_and_embedding_is_drawn(preset: str) -> None:
    """Norms and gates keep what their constructors gave; all else is overwritten, not-a-number included."""
    model = LM(tiny_config(preset))
    roles = model.param_roles()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if roles[name].role in ("matrix", "embedding", "head", "bias"):
                p.fill_(math.nan)
    model.init_weights(0)
    for name, p in model.named_parameters():
        assert bool(torch.isfinite(p).all()), name
        role = roles[name].role
        if role == "bias":
            assert not p.any(), name
        elif role == "norm":
            assert torch.equal(p, torch.ones_like(p)), name
        elif role != "gate":
            assert float(p.detach().abs().min()) > 0.0, name


@pytest.mark.parametrize("preset", PRESETS)
def test_what_writes_to_the_residual_stream_is_scaled_by_its_depth(preset: str) -> None:
    """1/√(2·n_layers) on o_proj and down_proj alone: against a model of one layer, 1/√3 here. The seed is the same."""

    def size(layers: int, name: str) -> float:
        model = LM(tiny_config(preset, f"n_layers={layers}"))
        model.init_weights(0)
        found = {n.rpartition(".")[2]: t for n, t in model.state_dict().items() if f"blocks.0.{name}." in n}
        return float(found.get("b", found.get("b_np", found.get("weight"))).std())

    for name in ("attention.o_proj", "mlp.down_proj"):
        assert size(3, name) / size(1, name) == pytest.approx(3**-0.5, rel=1e-4)
    for name in ("attention.q_proj", "mlp.gate_up_proj"):
        assert size(3, name) == pytest.approx(size(1, name), rel=1e-4)


def test_no_two_matrices_are_drawn_alike() -> None:
    state = LM(tiny_config("cola-fan"))
    state.init_weights(0)
    matrices = [t.flatten()[:64] for t in state.state_dict().values() if t.ndim == 2]
    for i, one in enumerate(matrices):
        for other in matrices[i + 1 :]:
            n = min(len(one), len(other))
            cosine = float(torch.cosine_similarity(one[:n], other[:n], dim=0))
            assert abs(cosine) < 0.9


def test_gelu_second_moment_is_the_integral() -> None:
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    gelu = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    assert abs(float(torch.trapezoid(gelu**2 * density, z)) - init.GELU_SECOND_MOMENT) < 5e-5


@pytest.mark.parametrize("gain", [1.0, 0.2])
@pytest.mark.parametrize("kind", ["dense", "cola", "fan"])
def test_a_projection_of_mean_square_1_gives_gain_squared(kind: str, gain: float) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = {"one": 640}
    layers = {
        "dense": lambda: Dense(768, parts),
        "cola": lambda: CoLA(768, parts, 192),
        "fan": lambda: CoLAFAN(768, parts, 192, 0.15, 0.0),
    }
    layer = layers[kind]()
    init.init_projections(layer, gain, generator)
    out = layer(torch.randn(64, 768, generator=generator))[0]
    if kind == "fan":
        out = out[:, 2 * 96 :]  # the rest are cosines and sines
    # 64·448 outputs, correlated through 64 inputs and one draw of A: a few per cent.
    assert float(out.detach().square().mean()) == pytest.approx(gain**2, rel=0.1)


def test_the_full_rank_fan_keeps_the_mean_square_too() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = FAN(768, 0.15)
    init.init_fan(layer, generator)
    out = layer(torch.randn(64, 768, generator=generator))[:, 230:]
    assert float(out.detach().square().mean()) == pytest.approx(1.0, rel=0.1)


def test_the_first_logits_of_an_untied_head_have_the_deviation_of_head_gain() -> None:
    for preset in ("original", "cola-smollm2"):
        config = replace(widths(preset), n_layers=1)
        model = LM(config)
        model.init_weights(0)
        hidden = torch.randn(64, 768, generator=torch.Generator().manual_seed(1))
        assert float(model.head(hidden).detach().std()) == pytest.approx(init.HEAD_GAIN, rel=0.1)


def test_rows_of_the_embedding_have_length_about_1() -> None:
    weight = torch.empty(100, 768)
    init.init_embedding(weight, torch.Generator().manual_seed(0))
    assert float((weight.norm(dim=1) - 1).abs().max()) < 0.15


def _restore_what_is_not_drawn(model: LM) -> None:
    """After `to_empty`: norms to 1, gates to 0, and the rotary tables, which the constructor makes."""
    fresh = LM(replace(model.config, n_layers=1, vocab_size=2))
    tables: dict[str, Tensor] = dict(fresh.named_buffers())
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.RMSNorm):
                module.weight.fill_(1.0)
        for name, p in model.named_parameters():
            if name.endswith("gated_residual.gate"):
                p.zero_()
        for name, buffer in model.named_buffers():
            if ".rope." in name:
                buffer.copy_(tables["blocks.0.attention.rope." + name.rpartition(".")[2]])
