"""The weights' file: round trips, and what is said of a file that cannot be read."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from colakit.build import Machine, build_model
from colakit.checkpoint.model_file import MODEL_FILE, load_model, model_tensors, save_tensors
from colakit.config.load import resolve
from colakit.errors import CheckpointError
from colakit.model.lm import LM

CPU = Machine(torch.device("cpu"), torch.float32)
TINY = ("d_model=24", "n_layers=2", "n_heads=3", "n_kv_heads=3", "d_ff=40", "vocab_size=61", "seq_len=10")
KINDS = ("original", "cola", "cola-fan", "cola-fan-atf", "cola-m", "refined-tied")  # every kind of projection and head


def make_model(preset: str = "cola-fan", *sets: str) -> LM:
    return build_model(resolve(preset, smoke_run=True, sets=[*(f"model.{s}" for s in TINY), *sets]).config, CPU)


def save_model(model: LM, folder: Path) -> Path:
    save_tensors(model_tensors(model), folder / MODEL_FILE)
    return folder / MODEL_FILE


@pytest.mark.parametrize("preset", KINDS)
def test_what_is_saved_is_loaded(tmp_path: Path, preset: str) -> None:
    saved = make_model(preset)
    with torch.no_grad():
        for p in saved.parameters():
            p += 0.1 * torch.arange(p.numel()).view_as(p)  # norms, biases and gates off the values all models start at
    save_model(saved, tmp_path)
    loaded = make_model(preset, "train.seed=1")
    load_model(loaded, tmp_path)
    for (name, p), (_, q) in zip(saved.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(p, q), name
    assert load_file(tmp_path / "model.safetensors").keys() == saved.state_dict().keys()


def test_the_file_says_that_torch_wrote_it(tmp_path: Path) -> None:
    """`transformers` refuses a file without it."""
    with safe_open(save_model(make_model(), tmp_path), framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file") as caught:
        load_model(make_model(), tmp_path)
    assert str(tmp_path / "model.safetensors") in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, share: float) -> None:
    path = save_model(make_model(), tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="not a readable safetensors file") as caught:
        load_model(make_model(), tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("other", ["model.d_ff=44", "model.n_layers=1", "model.n_layers=3", "model.vocab_size=67"])
def test_a_file_of_another_shape_is_named(tmp_path: Path, other: str) -> None:
    path = save_model(make_model("cola-fan", other), tmp_path)
    with pytest.raises(CheckpointError, match="does not fit the configuration") as caught:
        load_model(make_model(), tmp_path)
    assert str(path) in str(caught.value)


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    path = save_model(make_model(), tmp_path)
    tensors = load_file(path)
    del tensors["norm.weight"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"norm\.weight"):
        load_model(make_model(), tmp_path)


def test_others_may_read_the_file_where_the_umask_lets_them(tmp_path: Path) -> None:
    """As any file that is written: safetensors alone would make it its owner's."""
    (tmp_path / "another").touch()
    path = save_model(make_model(), tmp_path)
    assert path.stat().st_mode == (tmp_path / "another").stat().st_mode
