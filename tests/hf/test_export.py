"""Exported folders: what another process reads of them, with colakit and without, and what colakit reads back."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import colakit.hf
from colakit.config.load import resolve
from colakit.errors import CheckpointError, RunError
from colakit.evaluate.foreign import ForeignModel
from colakit.hf.export import export, source_of
from colakit.hf.importing import open_export
from colakit.opening import open_model
from colakit.train.saved import SavedModel, held_out_of, open_saved
from tests.train.tiny_runs import evaluated

TOKENS = [[5, 17, 200, 3, 60, 61], [7, 1, 2, 30, 44, 9]]


@pytest.fixture(scope="module")
def exported(tiny_run: Path) -> Path:
    folder = tiny_run.parent / "plain"
    export(open_saved(tiny_run), folder, standalone=False)
    return folder


@pytest.fixture(scope="module")
def standalone(tiny_run: Path) -> Path:
    folder = tiny_run.parent / "standalone"
    export(open_saved(tiny_run), folder, standalone=True)
    return folder


def run_python(script: str, tmp_path: Path) -> str:
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-W", "error::FutureWarning", "-c", script]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


SCRIPT = """
import sys
{before}
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({folder!r}, **{options})
tokenizer = AutoTokenizer.from_pretrained({folder!r}, **{options})
assert tokenizer.decode(tokenizer("word3 and 12")["input_ids"]) == "word3 and 12"
batch = tokenizer(["word3 and", "a"], padding=True, return_tensors="pt")
longer = model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
assert longer.shape[1] == batch["input_ids"].shape[1] + 3
with torch.no_grad():
    torch.save(model(torch.tensor({tokens})).logits, "logits.pt")
print(*sorted(name for name in sys.modules if name.split(".")[0] == "colakit"))
"""
WITHOUT_COLAKIT = """
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "colakit":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
"""


def logits_of(run: Path) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = open_saved(run).model(torch.tensor(TOKENS))
    return logits


def test_another_process_computes_the_same_bits(tiny_run: Path, exported: Path, tmp_path: Path) -> None:
    run_python(SCRIPT.format(before="import colakit.hf", folder=str(exported), options={}, tokens=TOKENS), tmp_path)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits_of(tiny_run))


def test_so_does_one_without_colakit_that_trusts_the_folder_s_code(
    tiny_run: Path, standalone: Path, tmp_path: Path
) -> None:
    options = {"trust_remote_code": True}
    script = SCRIPT.format(before=WITHOUT_COLAKIT, folder=str(standalone), options=options, tokens=TOKENS)
    assert run_python(script, tmp_path).split() == []
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits_of(tiny_run))


def test_the_code_is_colakit_s_own_and_asks_for_nothing_else(standalone: Path) -> None:
    files = {path.stem: path.read_text() for path in standalone.glob("*.py")}
    assert {"modeling_colakit", "configuration_colakit", "lm", "linear", "products"} <= files.keys()
    allowed = {"torch", "transformers", "safetensors", *sys.stdlib_module_names}
    for name, text in files.items():
        places = ("model", "hf")
        package = next((p for p in places if (Path(colakit.hf.__file__).parents[1] / p / f"{name}.py").exists()), None)
        source = source_of(f"colakit.{package}.{name}" if package else f"colakit.{name}")
        assert re.sub(r"from \.(\w+) import", r"from X.\1 import", text) == re.sub(
            r"from colakit(?:\.\w+)*\.(\w+) import", r"from X.\1 import", source
        )
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                assert node.module in files
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in allowed | {"flash_attn"}
            elif isinstance(node, ast.Import):
                assert {a.name.split(".")[0] for a in node.names} <= allowed | {"flash_attn"}


def test_it_holds_what_generation_needs(exported: Path, tiny_run: Path) -> None:
    saved = open_saved(tiny_run)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    eot = saved.tokenizer.eot_id
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.padding_side) == (eot, eot, "left")
    assert tokenizer.model_max_length == 24
    spelled = f"a {saved.tokenizer.eot_token} b"
    found = tokenizer(spelled)
    assert found["input_ids"] == saved.tokenizer.encode_batch([spelled])[0], "no text can spell its end"
    assert found.keys() == {"input_ids", "attention_mask"}
    model = AutoModelForCausalLM.from_pretrained(exported)
    settings = model.generation_config
    assert (settings.eos_token_id, settings.pad_token_id) == (eot, eot)
    assert settings.suppress_tokens == list(range(saved.tokenizer.n_tokens, 320)), "rows that no token has"


def test_colakit_reads_it_back_with_its_data(exported: Path, tiny_run: Path) -> None:
    back, run = open_model(exported), open_saved(tiny_run)
    assert isinstance(back, SavedModel)
    assert (back.steps, back.config.preset, back.config.model.d_model) == (8, run.config.preset, 32)
    assert back.config.model == run.config.model.model_copy(update={"qkv_norm": run.config.model.effective_qkv_norm})
    for (name, p), (_, q) in zip(back.model.named_parameters(), run.model.named_parameters(), strict=True):
        assert torch.equal(p, q), name
    assert held_out_of(back).fingerprint == held_out_of(run).fingerprint
    assert back.model.training is False


def test_an_export_of_an_export_is_the_same(exported: Path, tmp_path: Path) -> None:
    export(open_export(exported), tmp_path / "again", standalone=False)
    names = {path.name for path in exported.iterdir()}
    assert names == {path.name for path in (tmp_path / "again").iterdir()}
    for name in names - {"colakit.json"}:
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes(), name


def test_what_transformers_trained_on_is_read_as_it_is_now(exported: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(exported)
    with torch.no_grad():
        model.model.tok_embed.weight += 1.0
    model.save_pretrained(tmp_path)
    with pytest.raises(Exception, match=r"holds no tokenizer\.json"):
        open_model(tmp_path)
    AutoTokenizer.from_pretrained(exported).save_pretrained(tmp_path)
    back = open_model(tmp_path)
    assert isinstance(back, SavedModel)
    assert torch.equal(back.model.tok_embed.weight, model.model.tok_embed.weight)
    assert back.steps is None
    with pytest.raises(CheckpointError, match=r"does not say what it was trained on.*--data"):
        held_out_of(back)


def test_a_run_is_found_by_any_of_its_checkpoints(tiny_run: Path) -> None:
    found = open_saved(tiny_run / "checkpoints" / "step-00000003")
    assert found.steps == 3
    assert open_saved(tiny_run).steps == 8
    assert not torch.equal(found.model.tok_embed.weight, open_saved(tiny_run).model.tok_embed.weight)
    assert evaluated(tiny_run / "checkpoints" / "step-00000003").step == 3


def test_nothing_is_overwritten_and_nothing_half_is_left(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = open_saved(tiny_run)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="exists and is not an empty folder"):
        export(saved, tmp_path / "there", standalone=False)
    assert (tmp_path / "there" / "mine.txt").read_text() == "mine"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("colakit.hf.export._write_origin", full)
        with pytest.raises(RunError, match=r"cannot be written \(No space left on device\)"):
            export(saved, tmp_path / "new", standalone=False)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    (tmp_path / "empty").mkdir()
    assert export(saved, tmp_path / "empty", standalone=False).step == 8


def test_a_tokenizer_that_transformers_wrote_again_is_the_same(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "copy")
    AutoTokenizer.from_pretrained(exported).save_pretrained(tmp_path / "copy")
    assert open_export(tmp_path / "copy").steps == 8


def test_damage_is_told(exported: Path, tmp_path: Path) -> None:
    def broken(name: str, content: bytes) -> Path:
        folder = tmp_path / name.replace(".", "-")
        shutil.copytree(exported, folder)
        (folder / name).write_bytes(content)
        return folder

    folder = broken("model.safetensors", b"cut short")
    with pytest.raises(CheckpointError, match=r"is no whole model \(.*Export it again"):
        open_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors\. Copy it again"):
        open_model(folder)
    with pytest.raises(CheckpointError, match=r"colakit\.json is damaged"):
        open_model(broken("colakit.json", b"{"))
    config = json.loads((exported / "config.json").read_text())
    for change in ({"d_model": "wide"}, {"n_heads": 5}, {"norm": "sideways"}, {"d_ff": 40}):
        content = json.dumps(config | change).encode()
        with pytest.raises(CheckpointError, match=r"is no whole model \("):
            open_model(broken("config.json", content))
        shutil.rmtree(tmp_path / "config-json")
    tokenizer = json.loads((exported / "tokenizer.json").read_text())
    n = len(tokenizer["model"]["vocab"])
    a, b = (next(t for t, i in tokenizer["model"]["vocab"].items() if i == place) for place in (40, 41))
    swapped = {**tokenizer, "model": {**tokenizer["model"], "vocab": {**tokenizer["model"]["vocab"], a: 41, b: 40}}}
    with pytest.raises(CheckpointError, match="holds another tokenizer than its model was trained with"):
        open_model(broken("tokenizer.json", json.dumps(swapped).encode()))
    shutil.rmtree(tmp_path / "tokenizer-json")
    more = [{**tokenizer["added_tokens"][0], "id": n + i, "content": f"<more {i}>"} for i in range(400 - n)]
    tokenizer["added_tokens"] += more
    with pytest.raises(CheckpointError, match=r"its tokenizer has 400 tokens, and its model 320 rows"):
        open_model(broken("tokenizer.json", json.dumps(tokenizer).encode()))


def test_another_model_of_transformers_can_be_opened_to_compare(exported: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 30}
    LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(exported / name, tmp_path / name)
    opened = open_model(tmp_path)
    assert isinstance(opened, ForeignModel)
    assert (opened.seq_len, opened.vocab_size) == (30, 320)
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match="no llama model could be read from it"):
        open_model(tmp_path)


def test_every_preset_makes_a_configuration_that_transformers_keeps(tmp_path: Path) -> None:
    from colakit.build import lm_config
    from colakit.config.presets import preset_names
    from colakit.hf import ColakitConfig

    for name in preset_names():
        config = lm_config(resolve(name).config.model, "sdpa")
        ColakitConfig(**vars(config)).save_pretrained(tmp_path)
        assert ColakitConfig.from_pretrained(tmp_path).lm_config() == config
