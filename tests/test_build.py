"""From a configuration to device, dtype, attention backend and model."""

import importlib.util
import logging
from dataclasses import fields

import pytest
import torch

from colakit import build
from colakit.build import Machine, build_model, lm_config, pick_machine
from colakit.config.load import resolve
from colakit.config.schema import ModelConfig, RunConfig
from colakit.errors import ConfigError
from colakit.model import backends
from colakit.model.attention import Attention
from colakit.model.config import LMConfig

CPU = torch.device("cpu")
TINY = ("d_model=24", "n_layers=2", "n_heads=3", "n_kv_heads=3", "d_ff=40", "vocab_size=61", "seq_len=10")


def tiny_config(preset: str = "cola-fan", *sets: str) -> RunConfig:
    return resolve(preset, smoke_run=True, sets=[*(f"model.{s}" for s in TINY), *sets]).config


@pytest.fixture(autouse=True)
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def set_flash_attn(monkeypatch: pytest.MonkeyPatch, *, installed: bool) -> None:
    original = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> object:
        return (object() if installed else None) if name == "flash_attn" else original(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def set_cuda(monkeypatch: pytest.MonkeyPatch, *, native_bf16: bool) -> None:
    """A GPU that is seen and never touched. Emulated bfloat16 counts only where it is asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: native_bf16 or including_emulation
    )


def test_cuda_that_is_absent_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.device.*no CUDA device"):
        pick_machine(tiny_config("cola-fan", "train.device=cuda"))


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_without_cuda_a_run_is_on_the_cpu_in_float32(device: str) -> None:
    machine = pick_machine(tiny_config("cola-fan", f"train.device={device}"))
    assert machine == Machine(CPU, torch.float32, "sdpa")
    assert str(machine) == "CPU, float32"


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_the_dtype_that_is_asked_for_is_used(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert pick_machine(tiny_config("cola-fan", f"train.dtype={name}")).dtype == getattr(torch, name)
    set_cuda(monkeypatch, native_bf16=name == "float32")
    assert pick_machine(tiny_config("cola-fan", f"train.dtype={name}")).dtype == getattr(torch, name)


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_dtype_on_a_gpu_is_what_it_multiplies_natively(
    monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype
) -> None:
    set_flash_attn(monkeypatch, installed=True)
    set_cuda(monkeypatch, native_bf16=native)
    machine = pick_machine(tiny_config())
    assert (machine.device.type, machine.dtype) == ("cuda", dtype)
    assert machine.attention == ("flash" if native else "sdpa")  # the kernel takes no float32
    machine = pick_machine(tiny_config("cola-fan", "train.device=cpu"))
    assert (machine.device.type, machine.dtype, machine.attention) == ("cpu", torch.float32, "sdpa")


@pytest.mark.parametrize(("installed", "rule"), [(False, "not installed"), (True, "needs CUDA and bfloat16")])
def test_flash_that_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch, installed: bool, rule: str) -> None:
    set_flash_attn(monkeypatch, installed=installed)
    with pytest.raises(ConfigError, match=rf"model\.attention.*{rule}"):
        pick_machine(tiny_config("cola-fan", "model.attention=flash"))


def test_an_automatic_backend_is_logged_and_a_chosen_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="colakit"):
        assert pick_machine(tiny_config()).attention == "sdpa"
        assert [r.getMessage() for r in caplog.records] == ["model.attention is auto: using sdpa"]
        assert pick_machine(tiny_config("cola-fan", "model.attention=sdpa")).attention == "sdpa"
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name", ["reference", "sdpa"])
def test_the_chosen_backend_reaches_every_block(name: str) -> None:
    config = tiny_config("cola-fan", f"model.attention={name}")
    machine = pick_machine(config)
    assert machine.attention == name
    attends = [m.attend for m in build_model(config, machine).modules() if isinstance(m, Attention)]
    assert attends == 2 * [getattr(backends, name)]


@pytest.mark.parametrize("preset", ["original", "cola-fan-dropout-muon", "refined-tied", "cola-m"])
def test_the_model_gets_every_field_as_it_was_set(preset: str) -> None:
    assert [f.name for f in fields(LMConfig)] == list(ModelConfig.model_fields)
    config = tiny_config(preset).model
    built = lm_config(config, "reference")
    for name in ModelConfig.model_fields.keys() - {"attention", "qkv_norm"}:
        assert getattr(built, name) == getattr(config, name), name
    assert built.attention == "reference"
    assert built.qkv_norm == config.effective_qkv_norm


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (("model.norm=pre",), "none"),
        (("model.norm=post",), "none"),
        (("model.norm=hybrid",), "rms"),
        (("model.norm=listing",), "rms"),
        (("model.norm=pre", "model.qkv_norm=l2"), "l2"),
        (("model.norm=hybrid", "model.qkv_norm=l2"), "l2"),
    ],
)
def test_the_norm_of_q_k_and_v_follows_the_placement_unless_set(sets: tuple[str, ...], expected: str) -> None:
    assert lm_config(tiny_config("cola-smollm2", *sets).model, "sdpa").qkv_norm == expected


def test_the_model_is_a_function_of_the_seed() -> None:
    machine = Machine(CPU, torch.float32)
    one, again, other = (build_model(tiny_config("cola-fan", f"train.seed={s}"), machine) for s in (3, 3, 4))
    assert torch.equal(one.tok_embed.weight, again.tok_embed.weight)
    assert not torch.equal(one.tok_embed.weight, other.tok_embed.weight)


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto compiles there")
def test_blocks_are_compiled_where_it_is_asked_for_and_by_auto_not_on_a_cpu() -> None:
    found = {value: pick_machine(resolve("cola", sets=[f"train.compile={value}"]).config).compiles for value in CHOICES}
    assert found == {"true": True, "false": False, "auto": False}


def test_auto_compiles_on_cuda_what_can_be_compiled() -> None:
    cuda, apart = torch.device("cuda"), "data.attend_across_documents=false"
    assert build.will_compile(resolve("cola-m").config, cuda) is True
    assert build.will_compile(resolve("cola-m", sets=[apart]).config, cuda) is False
    assert build.will_compile(resolve("cola-m", sets=["train.compile=false"]).config, cuda) is False


CHOICES = ("true", "false", "auto")
