"""The closed formulas against the built model and PyTorch's own counter: equal, without tolerance."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from colakit.analysis import chunking
from colakit.analysis.flops import step_flops
from colakit.analysis.inventory import group_of, parameters
from colakit.analysis.params import total_params
from colakit.build import build_optimizer, lm_config
from colakit.config import rules
from colakit.config.load import resolve
from colakit.config.presets import preset_names
from colakit.config.schema import ModelConfig, RunConfig
from colakit.loss import loss_sums
from colakit.model.lm import LM
from colakit.optim.groups import route
from colakit.optim.muon import Muon

SMALL = ("model.seq_len=40", "model.n_layers=2", "model.vocab_size=700")
VARIANTS = (
    (),
    ("model.norm=pre",),
    ("model.norm=post",),
    ("model.norm=listing",),
    ("model.qkv_norm=l2",),
    ("model.n_kv_heads=12",),
    ("model.tie_embeddings=true",),
)


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    """Any valid configuration of a tiny model."""
    n_kv_heads = draw(st.integers(1, 3))
    n_heads = n_kv_heads * draw(st.integers(1, 3))
    model = {
        "n_layers": draw(st.integers(1, 3)),
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "d_model": n_heads * 2 * draw(st.integers(2, 6)),
        "d_ff": draw(st.integers(8, 70)),
        "vocab_size": draw(st.integers(10, 90)),
        "seq_len": draw(st.integers(2, 30)),
        "linear": draw(st.sampled_from(["dense", "cola"])),
        "rank": draw(st.none() | st.integers(1, 7)),
        "fan": draw(st.sampled_from(["none", "qkv", "input"])),
        "fan_ratio": draw(st.floats(0.0, 0.49)),
        "norm": draw(st.sampled_from(["pre", "post", "hybrid", "listing"])),
        "qkv_norm": draw(st.sampled_from([None, "rms", "l2", "none"])),
        "tie_embeddings": draw(st.booleans()),
        "remat": draw(st.sampled_from(["none", "cola_m"])),
    }
    optim = {"optimizer": draw(st.sampled_from(["adamw", "muon"])), "ns_steps": draw(st.integers(1, 7))}
    batch = {"batch_size": draw(st.integers(1, 5))}
    values = {"model": model, "optim": optim, "train": batch, "data": {"source": "stdlib"}}
    config = RunConfig.model_validate(values)
    assume(not list(rules.check(config)))
    return config


ANY_CONFIG = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.filter_too_much]}


def build(model: ModelConfig, device: str = "meta") -> LM:
    with torch.device(device):
        return LM(lm_config(model, "sdpa"))


def counted(run: Callable[[], object]) -> int:
    """What PyTorch counts, on the math attention path, which is the one whose products it sees."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    total: int = counter.get_total_flops()
    return total


def step_of(config: RunConfig, *, chunked: bool = False, device: str = "meta") -> Callable[[], None]:
    """Forward and backward of one batch, with the plain loss or the chunked one."""
    lm = build(config.model, device)
    tokens = torch.zeros(config.train.batch_size, config.model.seq_len, dtype=torch.int64, device=device)

    def step() -> None:
        if chunked:
            loss_sums(*lm.logit_factors(lm.hidden(tokens)), tokens).nll.backward()
        else:
            torch.nn.functional.cross_entropy(lm(tokens).flatten(0, 1), tokens.flatten()).backward()

    return step


# --- parameters


def assert_parameters_equal(model: ModelConfig) -> None:
    built, listed = build(model), parameters(model)
    assert total_params(model) == sum(p.numel() for p in built.parameters())
    assert {p.name: p.shape for p in listed} == {name: tuple(t.shape) for name, t in built.state_dict().items()}
    assert len({p.name for p in listed}) == len(listed)


@pytest.mark.parametrize("preset", preset_names())
def test_parameters_equal_the_built_model(preset: str) -> None:
    for sets in VARIANTS:
        assert_parameters_equal(resolve(preset, sets=list(sets)).config.model)


@settings(max_examples=200, **ANY_CONFIG)
@given(configs())
def test_parameters_equal_any_built_model(config: RunConfig) -> None:
    assert_parameters_equal(config.model)


@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("preset", ["original", "cola-fan", "cola-fan-atf", "refined-tied"])
def test_each_parameter_is_routed_as_the_optimizers_are_built(preset: str, muon: bool) -> None:
    """By group: as many entries, and matrices of the same shapes."""
    model = resolve(preset, smoke_run=True, sets=["model.norm=listing"]).config.model
    built = build(model)
    stored, roles = dict(built.named_parameters()), built.param_roles()
    routing = route(built, roles, muon=muon)
    for group in ("muon", "adamw_decayed", "adamw_plain"):
        mine = [p for p in parameters(model) if group_of(p.role, muon=muon) == group]
        names = getattr(routing, group)
        assert sum(p.size for p in mine) == sum(stored[n].numel() for n in names)
        if group == "muon":
            matrices = sorted((p.shape[0] // p.matrices, p.shape[1]) for p in mine for _ in range(p.matrices))
            assert matrices == sorted((rows, stored[n].shape[1]) for n in names for rows in roles[n].matrix_rows)


# --- FLOPs


def assert_flops_equal(config: RunConfig, device: str = "meta") -> None:
    plain = config.model_copy(update={"model": config.model.model_copy(update={"remat": "none"})})
    step = step_flops(config)
    forward = build(plain.model, device)
    tokens = torch.zeros(config.train.batch_size, config.model.seq_len, dtype=torch.int64, device=device)
    with torch.no_grad():
        assert step.forward == counted(lambda: forward(tokens))
    without_recompute = counted(step_of(plain, device=device))
    assert step.model_flops == sum(c.training for c in step.components) == without_recompute
    if config.model.remat == "cola_m":
        assert step.recompute == counted(step_of(config, device=device)) - without_recompute
    else:
        assert step.recompute == 0
    assert step.hardware_flops == step.model_flops + step.recompute + step.newton_schulz


@pytest.mark.parametrize("preset", preset_names())
def test_flops_equal_pytorchs_counter(preset: str) -> None:
    """Of every preset's kind, CoLA-M's recompute included."""
    for norm in ("hybrid", "pre", "post", "listing"):
        config = resolve(preset, sets=[*SMALL, "train.batch_size=3", f"model.norm={norm}"]).config
        assert_flops_equal(config)


@settings(max_examples=50, **ANY_CONFIG)
@given(configs())
def test_flops_equal_pytorchs_counter_for_any_model(config: RunConfig) -> None:
    assert_flops_equal(config, "cpu")  # tiny: faster for real than as shapes alone


@pytest.mark.parametrize("preset", preset_names())
def test_flops_of_a_smoke_run_equal_pytorchs_counter(preset: str) -> None:
    assert_flops_equal(resolve(preset, smoke_run=True).config)


@pytest.mark.parametrize("preset", ["original", "cola-fan", "refined-tied", "cola-m"])
def test_a_loss_in_chunks_computes_nothing_twice(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve(preset, sets=[*SMALL, "train.batch_size=3"]).config
    flops = step_flops(config)
    monkeypatch.setattr(chunking, "MAX_LOGITS", 50 * 700)
    assert flops.model_flops + flops.recompute == counted(step_of(config, chunked=True))


@pytest.mark.parametrize("ns_steps", [3, 5, 7])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("preset", ["cola-fan-muon", "original"])
def test_newton_schulz_equals_pytorchs_counter(
    preset: str, device: str, ns_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the optimizer as it is built. On CUDA in the textbook's form, as bfloat16 asks for."""
    sets = [*SMALL, "optim.optimizer=muon", f"optim.ns_steps={ns_steps}", f"train.device={device}"]
    config = resolve(preset, sets=sets).config
    if device == "cuda":
        monkeypatch.setattr("colakit.optim.newton_schulz.compute_dtype", lambda _: torch.bfloat16)
        monkeypatch.setattr("colakit.optim.muon.compute_dtype", lambda _: torch.bfloat16)
    with torch.device("meta"):
        model = LM(lm_config(config.model, "sdpa"))
    optimizer = build_optimizer(model, config.optim)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    muon = optimizer.parts["muon"]
    assert isinstance(muon, Muon)
    assert step_flops(config).newton_schulz == muon.flops_per_step() == counted(muon.step) > 0
    without = resolve(preset, sets=[*SMALL, "optim.optimizer=adamw"]).config
    assert step_flops(without).newton_schulz == 0
