"""The shipped presets: each validates, says only what differs from the defaults, and keeps its kind under --smoke."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from colakit.config.load import resolve
from colakit.config.presets import load_preset, preset_names
from colakit.config.schema import RunConfig
from colakit.errors import ConfigError

DEFAULTS = RunConfig().model_dump()

SIZES = {"d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "vocab_size", "seq_len"}


def test_every_system_of_the_paper_has_its_row() -> None:
    assert preset_names() == [
        "original",
        "cola",
        "cola-smollm2",
        "cola-smollm2-muon",
        "cola-fan",
        "cola-fan-muon",
        "cola-fan-dropout",
        "cola-fan-dropout-muon",
        "cola-m",
        "cola-fan-atf",
        "refined",
        "refined-tied",
        "smollm2-stages",
    ]


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_validates(preset: str, smoke: bool) -> None:
    assert resolve(preset, smoke_run=smoke).config.preset == preset


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_says_only_what_differs_from_the_defaults(preset: str) -> None:
    same = [
        f"{section}.{key}"
        for section, values in load_preset(preset).values.items()
        for key, value in values.items()
        if DEFAULTS[section][key] == value
    ]
    assert same == []


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_names_its_row_of_the_paper(preset: str) -> None:
    about = load_preset(preset).about
    assert re.match(r"Tables 4-5, \w|§\d", about.paper)
    assert about.summary


def test_no_two_presets_are_the_same_run() -> None:
    runs = [resolve(preset).config.model_dump_json(exclude={"preset"}) for preset in preset_names()]
    assert len(set(runs)) == len(runs)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("original", {"linear": "dense", "vocab_size": 102_000}),
        ("cola", {"linear": "cola", "vocab_size": 102_000}),
        ("cola-smollm2", {"fan": "none", "remat": "none", "vocab_size": 49_152}),
        ("cola-m", {"fan": "none", "remat": "cola_m"}),
        ("cola-fan", {"fan": "qkv", "fan_ratio": 0.15, "fan_dropout": 0.0, "norm_eps": 1e-8}),
        ("cola-fan-atf", {"fan": "input", "linear": "cola"}),
        (
            "cola-fan-dropout",
            {
                "fan_dropout": 0.12,
                "fan_dropout_growth": 0.04,
                "post_attention_dropout": 0.05,
                "final_dropout": 0.05,
            },
        ),
        (
            "refined",
            {
                "norm_eps": 1e-5,
                "fan_dropout": 0.09,
                "fan_dropout_growth": 0.0,
                "post_attention_dropout": 0.0,
                "final_dropout": 0.0,
                "tie_embeddings": False,
            },
        ),
        ("refined-tied", {"norm_eps": 1e-5, "fan_dropout": 0.09, "tie_embeddings": True}),
    ],
)
def test_a_preset_is_the_papers_system(preset: str, expected: dict[str, object]) -> None:
    model = resolve(preset).config.model.model_dump()
    assert {key: model[key] for key in expected} == expected
    assert (model["norm"], model["qkv_norm"], model["attention_dropout"]) == ("hybrid", "rms", 0.0)


@pytest.mark.parametrize("preset", preset_names())
def test_muon_is_the_optimizer_of_the_rows_that_say_so(preset: str) -> None:
    optim = resolve(preset).config.optim
    says_muon = "Muon" in load_preset(preset).about.paper or preset.startswith(("refined", "smollm2"))
    assert optim.optimizer == ("muon" if says_muon else "adamw")
    assert (optim.lr, optim.weight_decay, optim.beta1, optim.beta2, optim.eps) == (5e-4, 0.01, 0.9, 0.95, 1e-8)
    assert (optim.momentum, optim.ns_steps, optim.warmup_steps) == (0.95, 5, 2000)


@pytest.mark.parametrize("preset", preset_names())
def test_the_presets_name_the_papers_data_and_length(preset: str) -> None:
    config = resolve(preset).config
    tokenizer = "microsoft/phi-4" if preset in {"original", "cola"} else "HuggingFaceTB/SmolLM2-135M-Instruct"
    for source in config.data.mixture.values():
        assert source.source == "hub"
    assert next(iter(config.data.mixture.values())).dataset == "HuggingFaceFW/fineweb-edu"
    assert config.data.tokenizer == tokenizer
    assert config.train.batch_size == (64 if preset == "cola-m" else 16)
    assert config.train.max_steps == (math.ceil(208_333 / 16) if preset.startswith("refined") else 10_000)


@pytest.mark.parametrize("preset", preset_names())
def test_smoke_keeps_the_kind(preset: str) -> None:
    whole, small = resolve(preset).config, resolve(preset, smoke_run=True).config
    assert small.model.model_dump(exclude=SIZES) == whole.model.model_dump(exclude=SIZES)
    changed = {"lr", "warmup_steps"}
    assert small.optim.model_dump(exclude=changed) == whole.optim.model_dump(exclude=changed)
    assert (small.data.source, small.data.tokenizer, small.data.dataset) == ("stdlib", "bpe", None)
    assert small.data.stages == whole.data.stages
    assert small.data.mixture.keys() == whole.data.mixture.keys()
    assert all(source.source == "stdlib" for source in small.data.mixture.values())


def test_the_stages_are_those_of_section_3() -> None:
    """§3: from web text alone, with mathematics and code mixed in later; in the last phase 14 % mathematics."""
    config = resolve("smollm2-stages").config
    first, *_, last = config.data.stages
    assert len(config.data.stages) == 4
    assert first.weights == {"web": 1.0}
    assert last.weights["maths"] / sum(last.weights.values()) == pytest.approx(0.14)
    assert [s.dataset for s in config.data.sources.values()] == [
        "HuggingFaceFW/fineweb-edu",
        "HuggingFaceTB/finemath",
        "HuggingFaceTB/stack-edu",
    ]


@pytest.mark.parametrize("preset", preset_names())
def test_smoke_is_smaller_in_every_size(preset: str) -> None:
    whole, small = resolve(preset).config, resolve(preset, smoke_run=True).config
    assert all(getattr(small.model, size) < getattr(whole.model, size) for size in SIZES)
    assert small.train.max_steps < whole.train.max_steps
    assert small.optim.warmup_steps < small.train.max_steps


def test_smoke_shrinks_an_explicit_rank(preset_file: Callable[[str], str]) -> None:
    path = preset_file("[model]\nrank = 192\n")
    assert resolve(path).config.model.rank == 192
    assert resolve(path, smoke_run=True).config.model.rank == 64
    assert resolve("cola", smoke_run=True).config.model.rank is None


MIXTURE = """
[data.sources.mine]
source = "files"
path = "mine.txt"
[data.sources.web]
source = "hub"
dataset = "owner/web"
[data.sources.code]
source = "hub"
dataset = "owner/code"
[data.sources.python]
source = "stdlib"
[[data.stages]]
weights = { mine = 1.0, web = 1.0, code = 1.0, python = 1.0 }
"""


def test_smoke_reads_local_files_and_the_library_in_place_of_the_hub(preset_file: Callable[[str], str]) -> None:
    data = resolve(preset_file(MIXTURE), smoke_run=True).config.data
    assert {name: (s.source, s.part) for name, s in data.sources.items()} == {
        "mine": ("files", None),
        "web": ("stdlib", "1/2"),
        "code": ("stdlib", "2/2"),
        "python": ("stdlib", None),
    }
    single = resolve(
        preset_file('[data]\nsource = "files"\npath = "mine.txt"\nmin_words = 9'), smoke_run=True
    ).config.data
    assert (single.source, Path(str(single.path)).name, single.min_words) == ("files", "mine.txt", 9)


def test_a_preset_may_change_a_shipped_one(preset_file: Callable[[str], str]) -> None:
    own = resolve(preset_file('base = "cola-fan-muon"\n[model]\nn_layers = 3')).config
    base = resolve("cola-fan-muon").config
    assert own == base.model_copy(update={"preset": "mine", "model": base.model.model_copy(update={"n_layers": 3})})
    mixed = resolve(preset_file(f'base = "smollm2-stages"\n{MIXTURE}')).config.data
    assert list(mixed.sources) == ["mine", "web", "code", "python"]
    assert len(mixed.stages) == 1
    assert mixed.tokenizer == resolve("smollm2-stages").config.data.tokenizer
    assert (mixed.remove_urls, mixed.remove_crawl_markers, mixed.min_words) == (False, False, 0)
    assert resolve(preset_file('base = "cola"\n[data]\nval_fraction = 0.3')).config.data.min_words == 50
    one = resolve(preset_file('base = "smollm2-stages"\n[data]\nsource = "stdlib"')).config.data
    assert (one.source, one.sources, one.stages) == ("stdlib", {}, ())


@pytest.mark.parametrize("base", ['"cola-fam"', "3", '"mine.toml"'])
def test_another_base_is_refused(preset_file: Callable[[str], str], base: str) -> None:
    with pytest.raises(ConfigError, match=r"base = .*: no shipped preset has this name\. Name a .*: original, "):
        resolve(preset_file(f"base = {base}"))
