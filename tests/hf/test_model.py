"""`ColakitForCausalLM`: the same numbers as the model itself, through every door of `transformers`."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from colakit.hf import ColakitConfig, ColakitForCausalLM
from colakit.model.config import LMConfig
from colakit.model.lm import LM
from tests.model.tiny import PRESETS, SIZES, tiny_config, tiny_model

VOCAB, CONTEXT = SIZES["vocab_size"], SIZES["seq_len"]


def of(config: LMConfig, **more: object) -> ColakitConfig:
    return ColakitConfig(**{**vars(config), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, **more})


def hf_model(preset: str = "cola-fan-dropout") -> ColakitForCausalLM:
    config = tiny_config(preset)
    model = ColakitForCausalLM(of(config)).eval()
    model.model.load_state_dict(tiny_model(config).float().state_dict())
    return model


def tokens_of(rows: int = 3, length: int = 9) -> Tensor:
    return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("preset", PRESETS)
def test_saved_and_loaded_it_gives_identical_logits_and_identical_files(preset: str, tmp_path: Path) -> None:
    config, tokens = tiny_config(preset), tokens_of()
    own = tiny_model(config).float().eval()
    model = ColakitForCausalLM(of(config))
    model.model.load_state_dict(own.state_dict())
    model.save_pretrained(tmp_path / "first")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    assert not loaded.training
    with torch.no_grad():
        assert (loaded(tokens).logits - own(tokens)).abs().max() == 0
    loaded.save_pretrained(tmp_path / "second")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    names = load_file(tmp_path / "first" / "model.safetensors").keys()
    assert {name.removeprefix("model.") for name in names} == own.state_dict().keys()
    assert any("attention.q_proj." in name for name in names), "names are those of single projections"


@pytest.mark.parametrize("preset", PRESETS)
def test_logits_with_a_cache_are_those_without(preset: str) -> None:
    """Whole, token by token and in parts; float32, of logits up to about 5: 1e-4."""
    model, tokens = hf_model(preset), tokens_of()
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        for sizes in ([9], [1] * 9, [4, 1, 3, 1]):
            cache, parts = DynamicCache(), []
            for part in torch.split(tokens, sizes, dim=1):
                output = model(part, past_key_values=cache)
                assert output.past_key_values is cache
                parts.append(output.logits)
            torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(side: str) -> None:
    model = hf_model()
    rows = [tokens_of(1, n)[0] for n in (8, 3, 5)]
    padded, mask = torch.zeros(3, 8, dtype=torch.int64), torch.zeros(3, 8, dtype=torch.int64)
    for i, row in enumerate(rows):
        part = slice(8 - len(row), None) if side == "left" else slice(len(row))
        padded[i, part], mask[i, part] = row, 1
    with torch.no_grad():
        logits = model(padded, attention_mask=mask).logits
        assert logits.isfinite().all()
        for i, row in enumerate(rows):
            torch.testing.assert_close(logits[i][mask[i] == 1], model(row[None]).logits[0], rtol=1e-4, atol=1e-4)
        other = padded.clone()
        other[mask == 0] = 5
        changed = model(other, attention_mask=mask).logits
        torch.testing.assert_close(changed[mask == 1], logits[mask == 1], rtol=0.0, atol=0.0)


@pytest.mark.parametrize("how", [{"do_sample": False}, {"num_beams": 3, "do_sample": False}, {"do_sample": True}])
def test_generating_with_the_cache_is_generating_without(how: dict[str, object]) -> None:
    model, tokens = hf_model(), tokens_of(2, 4)
    found = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        found.append(model.generate(tokens, max_new_tokens=8, use_cache=use_cache, eos_token_id=None, **how))
    assert found[0].shape == (2, 12)
    assert torch.equal(found[0], found[1])


def test_a_batch_padded_on_the_left_goes_on_like_each_of_its_rows() -> None:
    model = hf_model()
    rows = [tokens_of(1, n)[0] for n in (2, 6, 4)]
    padded, mask = torch.zeros(3, 6, dtype=torch.int64), torch.zeros(3, 6, dtype=torch.int64)
    for i, row in enumerate(rows):
        padded[i, 6 - len(row) :], mask[i, 6 - len(row) :] = row, 1
    how = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    together = model.generate(padded, attention_mask=mask, **how)
    for i, row in enumerate(rows):
        alone = model.generate(row[None], attention_mask=torch.ones(1, len(row), dtype=torch.int64), **how)
        assert together[i, 6:].tolist() == alone[0, len(row) :].tolist()


def test_greedy_generation_is_that_of_the_model_itself() -> None:
    model, ids = hf_model(), tokens_of(1, 3)[0].tolist()
    whole = list(ids)
    with torch.no_grad():
        for _ in range(7):
            whole.append(int(model.model(torch.tensor([whole]))[0, -1].argmax()))
    found = model.generate(torch.tensor([ids]), max_new_tokens=7, do_sample=False, eos_token_id=None)
    assert found[0].tolist() == whole


def test_the_loss_is_that_of_the_next_token_and_trains_every_weight() -> None:
    model, tokens = hf_model("cola-m"), tokens_of()
    labels = tokens.clone()
    labels[0, :4] = -100
    assert (model.eval()(tokens, labels=labels).loss - model(tokens, labels=labels, use_cache=True).loss).abs() < 1e-5
    model(tokens, labels=labels, use_cache=True).loss.backward()  # CoLA-M computes nothing of it twice
    model.zero_grad()
    model.train()
    output = model(tokens, labels=labels)
    logits = model(tokens).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    assert output.past_key_values is None
    n = torch.tensor(7)
    summed = model(tokens, labels=labels, num_items_in_batch=n).loss
    torch.testing.assert_close(summed, expected * (labels[:, 1:] != -100).sum() / 7)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_positions_that_are_given_are_those_that_are_used() -> None:
    """Distances alone matter: three further on is the same, twice as far apart is not."""
    model, tokens = hf_model(), tokens_of(2, 5)
    with torch.no_grad():
        plain = model(tokens).logits
        torch.testing.assert_close(model(tokens, position_ids=torch.arange(3, 8)[None]).logits, plain)
        assert (model(tokens, position_ids=torch.arange(0, 10, 2)[None]).logits - plain).abs().max() > 1e-3


def test_only_the_logits_that_are_asked_for() -> None:
    model, tokens = hf_model(), tokens_of()
    with torch.no_grad():
        whole = model(tokens).logits
        torch.testing.assert_close(model(tokens, logits_to_keep=2).logits, whole[:, -2:])
        torch.testing.assert_close(model(tokens, logits_to_keep=torch.tensor([0, 3])).logits, whole[:, [0, 3]])
        assert isinstance(model(tokens, return_dict=False), tuple)


def test_what_it_has_not_is_refused() -> None:
    model, tokens = hf_model(), tokens_of()
    with pytest.raises(ValueError, match="a context of 13 tokens cannot hold 14"):
        model(tokens_of(1, CONTEXT + 1))
    with pytest.raises(ValueError, match=r"attention_mask must be \[3, 9\], which tells padding, not \[3, 8\]"):
        model(tokens, attention_mask=torch.ones(3, 8))
    with pytest.raises(ValueError, match="not for it: output_hidden_states"):
        model(tokens, output_hidden_states=True)
    with pytest.raises(ValueError, match="not for it: inputs_embeds"):
        model(tokens, inputs_embeds=torch.zeros(3, 9, 48))
    with pytest.raises(ValueError, match="0 for padding and 1 for what is read"):
        model(tokens, attention_mask=torch.full((3, 9), -1e4))
    with pytest.raises(ValueError, match="a cache that grows"):
        model.generate(tokens, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(NotImplementedError, match="the vocabulary it was trained with"):
        model.resize_token_embeddings(99)


def test_options_of_loading(tmp_path: Path) -> None:
    hf_model().save_pretrained(tmp_path)
    load = AutoModelForCausalLM.from_pretrained
    assert next(load(tmp_path, dtype="bfloat16").parameters()).dtype == torch.bfloat16
    assert next(load(tmp_path, dtype=torch.float64).parameters()).dtype == torch.float64
    assert next(load(tmp_path, dtype="auto", device_map="cpu").parameters()).dtype == torch.float32
    assert load(tmp_path, device_map={"": "cpu"}).device.type == "cpu"
    assert load(tmp_path, use_cache=False).config.use_cache is False
    _, info = load(tmp_path, output_loading_info=True)
    assert not any(info.values())
    with pytest.raises(ValueError, match="lies on one device"):
        load(tmp_path, device_map={"a": "cpu", "b": "meta"})
    for loader in (load, ColakitForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match="SDPA alone"):
            loader(tmp_path, attn_implementation="eager")
    load(tmp_path, dtype="bfloat16").save_pretrained(tmp_path / "half")
    for how in ({}, {"dtype": "auto"}):
        assert {p.dtype for p in load(tmp_path / "half", **how).parameters()} == {torch.bfloat16}, "as saved"
    with pytest.raises(ValueError, match=r"not options of .*: weights_only"):
        load(tmp_path, config=ColakitConfig.from_pretrained(tmp_path), weights_only=False)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load(tmp_path)
    assert torch.equal(torch.rand(1), expected), "loading draws nothing"
    shutil.copytree(tmp_path / "half", tmp_path / "repository" / "inner")
    assert load(tmp_path / "repository", subfolder="inner").dtype == torch.bfloat16


def test_a_model_in_several_files_is_read(tmp_path: Path) -> None:
    model = hf_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters(), strict=True))


def test_dropout_of_attention_acts_on_padded_rows_too() -> None:
    config = tiny_config("cola-smollm2", "attention_dropout=0.9")
    model = ColakitForCausalLM(of(config)).train()
    tokens, mask = tokens_of(2, 6), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    assert not torch.equal(*(model(tokens, attention_mask=mask).logits for _ in range(2)))


def test_options_that_mean_nothing_together(tmp_path: Path) -> None:
    hf_model().save_pretrained(tmp_path)
    load = AutoModelForCausalLM.from_pretrained
    with pytest.raises(ValueError, match=r"not options of ColakitForCausalLM\.from_pretrained: variant"):
        load(tmp_path, variant="fp16")


def test_a_file_that_does_not_fit_names_what_is_wrong(tmp_path: Path) -> None:
    hf_model().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.d_ff = 40
    config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"(?s)its weights do not fit .*blocks\.0\.mlp\.gate_up_proj\.b"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_the_configuration_has_the_words_of_transformers_too() -> None:
    config = of(tiny_config("cola-smollm2"))
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (48, 3, 6)
    assert (config.num_key_value_heads, config.max_position_embeddings, config.intermediate_size) == (2, 13, 44)
    assert config.lm_config() == tiny_config("cola-smollm2")
    with pytest.raises(ValueError, match="norm is 'sideways', which is none of pre, post, hybrid, listing"):
        of(tiny_config(), norm="sideways").lm_config()


def test_a_model_made_without_weights_is_initialised_by_the_seed() -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(of(tiny_config())).model.tok_embed.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert isinstance(AutoModelForCausalLM.from_config(of(tiny_config())).model, LM)
