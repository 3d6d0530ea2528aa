"""From a preset and its overrides to a `RunConfig`: types, problems, and the origin of each value."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from colakit.config.fields import known_fields
from colakit.config.load import from_saved, resolve
from colakit.config.presets import load_preset, preset_names
from colakit.config.schema import ModelConfig, OptimConfig
from colakit.errors import ConfigError, Problem

ProblemsOf = Callable[..., dict[str, Problem]]
PresetFile = Callable[[str], str]


# Types and ranges


@pytest.mark.parametrize(
    ("item", "rule"),
    [
        ("train.max_steps=5.0", "valid integer"),
        ("train.max_steps='5'", "valid integer"),
        ("train.max_steps=true", "valid integer"),
        ("train.max_steps=0", "greater than or equal to 1"),
        ("train.max_steps=", "valid integer"),
        ("model.rank=[1]", "valid integer"),
        ("model.tie_embeddings=1", "valid boolean"),
        ("model.vocab_size=1", "greater than or equal to 2"),
        ("model.fan_ratio=0.5", "less than 0.5"),
        ("model.fan_ratio=nan", "less than 0.5"),
        ("model.fan_dropout=1.0", "less than 1"),
        ("model.norm=sandwich", "'pre', 'post', 'hybrid' or 'listing'"),
        ("optim.lr=true", "valid number"),
        ("optim.lr=0.0", "greater than 0"),
        ("optim.lr=inf", "finite"),
        ("optim.ns_steps=21", "less than or equal to 20"),
        ("data.val_fraction=0.0", "greater than 0"),
        ("data.source=fles", "'stdlib', 'files' or 'hub'"),
    ],
)
def test_a_wrong_value_names_field_rule_and_meaning(problems_of: ProblemsOf, item: str, rule: str) -> None:
    field = item.partition("=")[0]
    found = problems_of(item)
    assert found.keys() == {field}
    assert rule in found[field].rule
    assert known_fields()[field].description in found[field].fix


def test_sections_are_frozen_and_strict() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ModelConfig().d_model = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="valid integer"):
        ModelConfig(d_model="768")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="Extra inputs"):
        OptimConfig(learning_rate=1.0)  # type: ignore[call-arg]


def test_every_field_says_what_it_is() -> None:
    assert [field for field, info in known_fields().items() if not info.description] == []


@pytest.mark.parametrize(
    ("item", "meant"),
    [
        ("train.max_step=3", "train.max_steps"),
        ("model.vocab=3", "model.vocab_size"),
        ("data.zzzzzz=1", None),
        ("model.lr=1.0", "optim.lr"),
        ("model.max_steps=3", "train.max_steps"),
        ("data.batch_size=4", "train.batch_size"),
    ],
)
def test_an_unknown_field_is_refused_with_a_guess(problems_of: ProblemsOf, item: str, meant: str | None) -> None:
    field = item.partition("=")[0]
    problem = problems_of(item)[field]
    assert problem.rule == "no such field"
    assert problem.fix == (f"Did you mean {meant}?" if meant else "`colakit presets show cola` lists every field.")


@pytest.mark.parametrize(("item", "meant"), [("modle.d_model=3", "model.d_model"), ("optimiser.lr=1.0", "optim.lr")])
def test_an_unknown_section_is_refused_with_a_guess(problems_of: ProblemsOf, item: str, meant: str) -> None:
    assert problems_of(item)[item.partition("=")[0]].fix == f"Did you mean {meant}?"


@pytest.mark.parametrize(("name", "guess"), [("cola-fn", "Did you mean cola-fan"), ("zzz", "`colakit presets` lists")])
def test_an_unknown_preset_is_refused_with_a_guess(problems_of: ProblemsOf, name: str, guess: str) -> None:
    problem = problems_of(preset=name)["preset"]
    assert problem.value == name
    assert problem.fix.startswith(guess)


def test_all_problems_are_shown_at_once(problems_of: ProblemsOf, preset_file: PresetFile) -> None:
    preset = preset_file('[model]\nwidth = 3\nlinear = "dense"\nremat = "cola_m"\n[train]\nseed = -1\n')
    found = problems_of("optim.lr=-1.0", "nonsense", "model.n_kv_heads=5", preset=preset)
    expected = {"model.width", "train.seed", "optim.lr", "--set", "model.n_kv_heads", "model.remat"}
    assert found.keys() == expected
    message = str(ConfigError(list(found.values())))
    assert message.startswith("6 problems in the configuration:\n")
    assert all(f"\n  {field} = " in message for field in expected)


def test_one_problem_is_counted_as_one(problems_of: ProblemsOf) -> None:
    error = ConfigError(list(problems_of("train.seed=-1").values()))
    assert str(error).startswith("1 problem in the configuration:\n  train.seed = -1: ")


def test_an_error_names_the_preset_it_is_about() -> None:
    with pytest.raises(ConfigError, match=r"1 problem in the configuration of original:\n  model\.rank = 8: "):
        resolve("original", sets=["model.rank=8"])


# --set


@pytest.mark.parametrize("item", ["max_steps=3", "train.max_steps", "=3", "model.=3", ".x=3", "model.a.b=3", ""])
def test_a_set_must_be_section_key_value(problems_of: ProblemsOf, item: str) -> None:
    assert problems_of(item)["--set"].value == item


def test_a_key_without_its_section_is_completed(problems_of: ProblemsOf) -> None:
    assert problems_of("max_steps=3")["--set"].fix.endswith("Did you mean train.max_steps?")


def test_a_field_of_one_source_of_several_is_set_by_its_name() -> None:
    code = [
        f"data.sources.code.{each}" for each in ("source=files", "path=mine", "dataset=none", "dataset_config=none")
    ]
    sets = ["data.sources.web.max_mb=3.5", *code, "data.sources.web.text_field=7"]
    plain, changed = (resolve("smollm2-stages", sets=each).config.data.sources for each in ([], sets))
    assert changed.keys() == plain.keys()
    assert changed["web"] == plain["web"].model_copy(update={"max_mb": 3.5, "text_field": "7"})
    assert changed["code"].path == str(Path("mine").absolute())
    assert changed["maths"] == plain["maths"]
    smoke = resolve("smollm2-stages", smoke_run=True, sets=sets[:1]).config.data.sources
    assert (smoke["web"].source, smoke["web"].max_mb) == ("stdlib", 3.5)


def test_faults_of_a_field_of_one_source() -> None:
    for item, message in (
        ("data.sources.wob.max_mb=1.0", r"no source is called wob\. There are web, maths, code\."),
        ("data.sources.web.max_m=1.0", r"data\.sources\.web\.max_m = 1\.0: no such field\. Did you mean max_mb\?"),
        ("data.sources.web.max_mb=x", r"data\.sources\.web\.max_mb = 'x': input should be a valid number"),
        ("data.sources.web=x", r"not of the form section\.key=value"),
    ):
        with pytest.raises(ConfigError, match=message):
            resolve("smollm2-stages", sets=[item])
    with pytest.raises(ConfigError, match=r"no source is called web\. There is one, without a name: set data\.KEY\."):
        resolve("cola", sets=["data.sources.web.max_mb=1.0"])


def test_a_seed_that_torch_cannot_take_is_refused(problems_of: ProblemsOf) -> None:
    assert "less than" in problems_of(f"train.seed={2**63}")["train.seed"].rule
    assert resolve("cola", sets=[f"train.seed={2**63 - 1}"]).config.train.seed == 2**63 - 1


def test_a_set_is_one_value(problems_of: ProblemsOf) -> None:
    """Further lines of TOML would be dropped without a word."""
    assert problems_of("train.max_steps=5\nx = 1")["train.max_steps"].value == "5\nx = 1"


@pytest.mark.parametrize("smoke", [False, True])
def test_the_presets_name_cannot_be_set(problems_of: ProblemsOf, preset_file: PresetFile, smoke: bool) -> None:
    assert "not a field to be set" in problems_of("preset.x=1", smoke_run=smoke)["preset"].rule
    assert "not a field to be set" in problems_of(preset=preset_file('preset = "z"'), smoke_run=smoke)["preset"].rule


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("train.max_steps=1_000", 1000),
        ("optim.lr=1", 1.0),
        ("optim.lr=3e-3", 3e-3),
        ("model.tie_embeddings=true", True),
        ("model.norm=pre", "pre"),
        ('model.norm="pre"', "pre"),
        ("model.rank=none", None),
        ("model.fan=none", "none"),
        ("data.dataset_config=none", None),
        ('data.dataset_config="none"', "none"),
        ("data.dataset_config=2024", "2024"),
        ('data.dataset_config="2024"', "2024"),
        ("data.dataset_config=true", "true"),
        ("data.dataset_config=[about]", "[about]"),
        ("data.dataset_config=a=b # c", "a=b # c"),
        ("data.tokenizer=none", "none"),
        (" train.seed = 7 ", 7),
    ],
)
def test_set_reads_toml_bare_words_and_none(item: str, value: object) -> None:
    section, _, key = item.partition("=")[0].strip().partition(".")
    assert getattr(getattr(resolve("cola", sets=[item]).config, section), key) == value


def test_none_is_a_choice_where_the_field_has_that_choice() -> None:
    assert resolve("cola", sets=["model.norm=pre", "model.qkv_norm=none"]).config.model.qkv_norm == "none"


def test_none_is_refused_where_a_field_cannot_be_unset(problems_of: ProblemsOf) -> None:
    assert problems_of("train.max_steps=none")["train.max_steps"].value == "none"


# Layers and origins


def test_later_layers_win_and_are_named(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    sets = ["train.max_steps=77", "model.d_ff=512", "train.seed=1", "train.seed=2"]
    resolved = resolve("original", smoke_run=True, data=str(text), sets=sets)
    config, origins = resolved.config, resolved.origins
    assert (config.model.linear, origins["model.linear"]) == ("dense", "preset")
    assert (config.model.vocab_size, origins["model.vocab_size"]) == (4096, "--smoke")
    assert (config.data.tokenizer, origins["data.tokenizer"]) == ("bpe", "--smoke")
    assert (config.data.source, origins["data.source"]) == ("files", "--data")
    assert (config.data.path, origins["data.path"]) == (str(text), "--data")
    assert (config.train.max_steps, origins["train.max_steps"]) == (77, "--set")
    assert (config.model.d_ff, origins["model.d_ff"]) == (512, "--set")
    assert config.train.seed == 2
    assert (config.optim.weight_decay, origins["optim.weight_decay"]) == (0.01, "default")


def test_data_says_what_it_replaces() -> None:
    (note,) = resolve("smollm2-stages", smoke_run=True, data="mine.txt").notes
    assert note == "--data replaces the preset's sources (web, maths, code) and its stages."
    assert resolve("cola", smoke_run=True, data="mine.txt").notes == ()


def test_set_wins_over_data() -> None:
    resolved = resolve("cola", data="a.txt", sets=["data.path=b.txt"])
    assert (resolved.config.data.path, resolved.origins["data.path"]) == (str(Path.cwd() / "b.txt"), "--set")


def test_data_replaces_the_presets_dataset() -> None:
    data = resolve("cola", data="a.txt").config.data
    assert (data.source, data.path, data.dataset, data.dataset_config) == (
        "files",
        str(Path.cwd() / "a.txt"),
        None,
        None,
    )


@pytest.mark.parametrize("given", ["a.txt", "~/a.txt", "/data/*.txt", "~no-such-user/a"])
def test_data_and_cache_are_found_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    expected = {
        "a.txt": f"{tmp_path}/a.txt",
        "~/a.txt": "/home/me/a.txt",
        "/data/*.txt": "/data/*.txt",
        "~no-such-user/a": f"{tmp_path}/~no-such-user/a",
    }
    data = resolve("cola", data=given, sets=[f"data.cache_dir={given}"]).config.data
    assert data.path == data.cache_dir == expected[given]


@pytest.mark.parametrize("preset", preset_names())
def test_every_field_has_exactly_one_origin(preset: str) -> None:
    origins = resolve(preset, smoke_run=True, sets=["train.seed=3"]).origins
    assert list(origins) == list(known_fields())
    assert set(origins.values()) == {"default", "preset", "--smoke", "--set", "derived"} - (
        {"preset"} if preset in {"cola", "cola-smollm2"} else set()
    )


def test_the_config_bears_the_presets_name(preset_file: PresetFile) -> None:
    assert resolve("cola-m").config.preset == "cola-m"
    assert resolve(preset_file("")).config.preset == "mine"


# Derived values


@pytest.mark.parametrize(("steps", "warmup"), [(1, 1), (9, 1), (50, 5), (1999, 199), (2000, 200)])
def test_a_short_run_gets_a_shorter_warmup(steps: int, warmup: int) -> None:
    resolved = resolve("cola", sets=[f"train.max_steps={steps}"])
    assert resolved.config.optim.warmup_steps == warmup
    assert resolved.origins["optim.warmup_steps"] == "derived"
    (note,) = resolved.notes
    assert f"{warmup} instead of 2000" in note
    assert f"train.max_steps is {steps}" in note


def test_a_run_longer_than_its_warmup_keeps_it() -> None:
    resolved = resolve("cola", sets=["train.max_steps=2001"])
    assert resolved.config.optim.warmup_steps == 2000
    assert resolved.origins["optim.warmup_steps"] == "default"
    assert resolved.notes == ()


@pytest.mark.parametrize(
    ("sets", "micro", "origin"),
    [
        ([], 16, "derived"),
        (["train.batch_size=6"], 6, "derived"),
        (["train.micro_batch_size=4"], 4, "--set"),
        (["train.micro_batch_size=16"], 16, "--set"),
        (["train.micro_batch_size=64"], 16, "derived"),
        (["train.batch_size=32", "train.micro_batch_size=none"], 32, "derived"),
    ],
)
def test_the_micro_batch_is_an_upper_limit(sets: list[str], micro: int, origin: str) -> None:
    resolved = resolve("cola", sets=sets)
    assert resolved.config.train.micro_batch_size == micro
    assert resolved.origins["train.micro_batch_size"] == origin


@pytest.mark.parametrize(("norm", "qkv"), [("pre", "none"), ("post", "none"), ("hybrid", "rms"), ("listing", "rms")])
def test_the_norm_of_qkv_follows_the_placement(norm: str, qkv: str) -> None:
    resolved = resolve("cola", sets=[f"model.norm={norm}"])
    assert (resolved.config.model.qkv_norm, resolved.origins["model.qkv_norm"]) == (qkv, "derived")
    chosen = resolve("cola", sets=[f"model.norm={norm}", "model.qkv_norm=l2"])
    assert (chosen.config.model.qkv_norm, chosen.origins["model.qkv_norm"]) == ("l2", "--set")


# Preset files and saved configurations


def test_a_preset_file_of_ones_own(preset_file: PresetFile) -> None:
    path = preset_file('[about]\nsummary = "mine"\npaper = "none"\n[model]\nn_layers = 3\n[train]\nseed = 5\n')
    resolved = resolve(path)
    assert (resolved.config.model.n_layers, resolved.config.train.seed) == (3, 5)
    assert (resolved.origins["model.n_layers"], resolved.origins["model.d_ff"]) == ("preset", "default")
    assert load_preset(path).about.summary == "mine"


def test_a_preset_file_needs_no_about(preset_file: PresetFile) -> None:
    assert load_preset(preset_file("[model]\nn_layers = 3\n")).about.paper == "none"


@pytest.mark.parametrize(
    ("text", "field", "rule"),
    [
        ("x =", "preset", "not valid TOML"),
        ('[about]\nsummary = 3\npaper = "x"\n', "about.summary", "valid string"),
        ('[about]\nsummary = "x"\n', "about.paper", "required"),
        ("about = 3", "about", "valid dictionary"),
        ("model = 3", "model", "valid dictionary"),
        ("[modle]\nd_model = 3", "modle.d_model", "no such field"),
        ("[model.d_model]\na = 1", "model.d_model", "valid integer"),
    ],
)
def test_a_faulty_preset_file(
    problems_of: ProblemsOf, preset_file: PresetFile, text: str, field: str, rule: str
) -> None:
    found = problems_of(preset=preset_file(text))
    assert found.keys() == {field}
    assert rule in found[field].rule.replace("Field required", "required")


@pytest.mark.parametrize("text", ["model = 3", "[[model]]\nd_model = 3"])
def test_smoke_hides_no_section_that_is_not_a_table(
    problems_of: ProblemsOf, preset_file: PresetFile, text: str
) -> None:
    assert problems_of(preset=preset_file(text), smoke_run=True).keys() == {"model"}


def test_an_unreadable_preset_file(problems_of: ProblemsOf, tmp_path: Path) -> None:
    assert "cannot be read" in problems_of(preset=str(tmp_path / "missing.toml"))["preset"].rule
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    assert "cannot be read" in problems_of(preset=str(tmp_path / "binary.toml"))["preset"].rule
    (tmp_path / "folder.toml").mkdir()
    assert "cannot be read" in problems_of(preset=str(tmp_path / "folder.toml"))["preset"].rule


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("preset", preset_names())
def test_a_saved_configuration_is_read_back_equal(preset: str, smoke: bool) -> None:
    config = resolve(preset, smoke_run=smoke).config
    assert from_saved(config.model_dump()) == config
    assert from_saved(json.loads(config.model_dump_json())) == config


def test_a_saved_configuration_that_is_no_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a table of sections"):
        from_saved(json.loads("[3]"))


def test_a_saved_configuration_that_does_not_fit_is_refused() -> None:
    saved = resolve("cola").config.model_dump()
    saved["model"] |= {"depth": 3, "d_model": "768"}
    with pytest.raises(ConfigError) as caught:
        from_saved(saved)
    assert {problem.field for problem in caught.value.problems} == {"model.depth", "model.d_model"}


def test_smoke_never_enlarges(preset_file: PresetFile) -> None:
    sizes = (
        "d_model = 64\nn_layers = 1\nn_heads = 2\nn_kv_heads = 1\nd_ff = 100\nvocab_size = 300\nseq_len = 32\nrank = 9"
    )
    path = preset_file(f"[model]\n{sizes}\n[train]\nmax_steps = 7\nbatch_size = 2\neval_every = 3\neval_tokens = 99")
    config, smoke = resolve(path, data="x").config, resolve(path, smoke_run=True, data="x").config
    assert smoke.model == config.model
    for field in ("max_steps", "batch_size", "eval_every", "eval_tokens"):
        assert getattr(smoke.train, field) == getattr(config.train, field), field


def test_a_preset_file_from_notepad_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("\ufeff[train]\nseed = 5\n", encoding="utf-8")
    assert resolve(str(path)).config.train.seed == 5
