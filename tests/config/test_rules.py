"""Every rule that joins several fields: it is broken once, and named by field, rule and fix."""

import re
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from colakit.config import rules
from colakit.config.load import resolve
from colakit.config.schema import ModelConfig, RunConfig
from colakit.errors import Problem

ProblemsOf = Callable[..., dict[str, Problem]]

BROKEN = [
    # sets, the field that is reported, words of its rule, words of its fix
    (["model.n_heads=18"], "model.n_heads", "d_model (768) must be divisible", "12, 16, 24"),
    (["model.d_model=36", "model.linear=dense"], "model.n_heads", "head_dim", "Change d_model"),
    (["model.n_kv_heads=5"], "model.n_kv_heads", "n_heads (12) must be divisible", "4, 6"),
    (["model.rank=384"], "model.rank", "k_proj and v_proj (768 → 384) would have rank 384", "below 384"),
    (["model.d_ff=20", "model.rank=39"], "model.rank", "down_proj (20 → 768)", "below 20"),
    (["model.vocab_size=100"], "model.rank", "lm_head (768 → 100) would have rank 192", "below 100"),
    (["model.linear=dense", "model.fan=qkv"], "model.fan", "CoLA_FAN is a low-rank layer", "model.fan=input"),
    (["model.fan=qkv", "model.fan_ratio=0.002"], "model.fan_ratio", "is 0 for a layer of width 384", "Raise it"),
    (["model.fan=input", "model.fan_ratio=0.001"], "model.fan_ratio", "is 0 for a layer of width 768", "Raise it"),
    (["model.fan=input", "model.fan_ratio=0.0"], "model.fan_ratio", "is 0 for a layer of width 768", "Raise it"),
    (["model.fan_dropout=0.1"], "model.fan_dropout", "only CoLA_FAN", "Set it to 0"),
    (
        ["model.fan=qkv", "model.fan_ratio=0.0", "model.fan_dropout=0.1"],
        "model.fan_dropout",
        "only CoLA_FAN",
        "Set it to 0",
    ),
    (["model.fan=input", "model.fan_dropout=0.1"], "model.fan_dropout", "only CoLA_FAN", "Set it to 0"),
    (
        ["model.fan=qkv", "model.fan_dropout=0.5", "model.fan_dropout_growth=0.1"],
        "model.fan_dropout_growth",
        "the last block would drop 1.05",
        "Lower it",
    ),
    (
        ["model.fan=qkv", "model.fan_dropout_growth=0.1"],
        "model.fan_dropout_growth",
        "no fan_dropout that could grow",
        "Set it to 0",
    ),
    (["model.qkv_norm=none"], "model.qkv_norm", "hybrid norm normalises Q, K and V", "rms or l2"),
    (["model.norm=listing", "model.qkv_norm=none"], "model.qkv_norm", "listing norm normalises", "rms or l2"),
    (["model.linear=dense", "model.remat=cola_m"], "model.remat", "dense layers have none", "model.remat=none"),
    (["train.device=cpu", "model.attention=flash"], "model.attention", "runs on CUDA only", "auto or sdpa"),
    (["data.source=files"], "data.path", "data.source = 'files' needs it", "--data PATH"),
    (["data.dataset=none"], "data.dataset", "data.source = 'hub' needs it", "Set data.dataset"),
    (["data.path=x"], "data.path", "data.source = 'hub' does not read it", "--data PATH"),
    (["train.batch_size=16777216"], "train.batch_size", "17,179,869,184 tokens, more than 2^32", "at most 4,194,304"),
    (["train.micro_batch_size=5"], "train.micro_batch_size", "batch_size (16) must be divisible", "4, 8"),
    (["data.part='3/2'"], "data.part", "part i of n, so i is at most n", "1/3 for the first of three"),
    (["data.streaming=true", "data.tokenizer=bpe"], "data.tokenizer", "as often", "leave data.streaming out"),
    (["data.stages=[{weights={a=1.0}}]"], "data.stages", "no source is called a", "under [data.sources.NAME]"),
    # contradictions among what was set by hand
    (["optim.warmup_steps=50", "train.max_steps=50"], "optim.warmup_steps", "must end before the run", "Lower it"),
    (["model.linear=dense", "model.rank=8"], "model.rank", "no low-rank layers", "model.linear=cola"),
    (["model.fan_ratio=0.2"], "model.fan_ratio", "no Fourier features", "model.fan=qkv"),
    (["data.source=stdlib", "data.dataset=x"], "data.dataset", "reads no Hugging Face dataset", "data.source=hub"),
    (["data.source=stdlib", "data.dataset_config=x"], "data.dataset_config", "reads no Hugging Face", "source=hub"),
    (["data.source=stdlib", "data.streaming=true"], "data.streaming", "reads no Hugging Face", "data.source=hub"),
    (["data.source=stdlib", "data.text_field=x"], "data.text_field", "has no records", "data.source=files"),
    (
        ["data.packing=pad", "data.attend_across_documents=false"],
        "data.attend_across_documents",
        "one document into a sequence",
        "data.packing=pack",
    ),
    (["optim.momentum=0.9"], "optim.momentum", "AdamW has no such momentum", "optim.optimizer=muon"),
    (["optim.nesterov=false"], "optim.nesterov", "AdamW has no such momentum", "optim.optimizer=muon"),
    (["optim.ns_steps=7"], "optim.ns_steps", "does not orthogonalise", "optim.optimizer=muon"),
    (["optim.ns_coefficients=[2,-1.5,0.5]"], "optim.ns_coefficients", "does not orthogonalise", "optimizer=muon"),
    (["optim.update_scaling=original"], "optim.update_scaling", "are not scaled", "optim.optimizer=muon"),
    (["optim.optimizer=muon", "optim.ns_coefficients=[3,3,3]"], "optim.ns_coefficients", "matrix", "near 1"),
    (
        ["optim.optimizer=muon", "optim.ns_coefficients=[2,0,0]", "optim.ns_steps=1"],
        "optim.ns_coefficients",
        "2.02",
        "",
    ),
    (["optim.optimizer=muon", "optim.ns_coefficients=[5,-5,1]", "optim.ns_steps=12"], "optim.ns_coefficients", "", ""),
    (["optim.optimizer=muon", "optim.ns_coefficients=[5,-20,16]", "optim.ns_steps=9"], "optim.ns_coefficients", "", ""),
    (["optim.optimizer=muon", "optim.ns_coefficients=[1.9,0,0]"], "optim.ns_coefficients", "matrix 26", "near 1"),
]


@pytest.mark.parametrize(("sets", "field", "rule", "fix"), BROKEN, ids=lambda v: ",".join(v) if type(v) is list else "")
def test_a_broken_rule_is_the_only_problem(
    problems_of: ProblemsOf, sets: list[str], field: str, rule: str, fix: str
) -> None:
    found = problems_of(*sets)
    assert found.keys() == {field}
    assert rule in found[field].rule
    assert fix in found[field].fix


ALLOWED = [
    ["model.n_kv_heads=12"],
    ["model.n_kv_heads=1", "model.linear=dense"],
    ["model.n_kv_heads=1", "model.rank=63"],
    ["model.rank=383"],
    ["model.vocab_size=100", "model.tie_embeddings=true"],
    ["model.vocab_size=100", "model.linear=dense"],
    ["model.fan=qkv", "model.fan_ratio=0.0"],
    ["model.fan=qkv", "model.fan_ratio=0.003"],
    ["model.fan=input", "model.fan_ratio=0.002"],
    ["model.linear=dense", "model.fan=input"],
    ["model.fan=qkv", "model.fan_dropout=0.5", "model.fan_dropout_growth=0.09"],
    ["model.norm=pre", "model.qkv_norm=none"],
    ["model.norm=listing", "model.qkv_norm=l2"],
    ["model.attention=flash"],
    ["train.micro_batch_size=4"],
    ["train.micro_batch_size=100"],
    ["optim.warmup_steps=49", "train.max_steps=50"],
    ["train.max_steps=50"],
    ["optim.optimizer=muon", "optim.momentum=0.9", "optim.ns_steps=7"],
    ["optim.optimizer=muon", "optim.ns_coefficients=[2,-1.5,0.5]", "optim.ns_steps=20"],
    ["optim.optimizer=muon", "optim.ns_coefficients=[1.9,0,0]", "optim.ns_steps=1"],
    ["optim.optimizer=muon", "optim.ns_steps=20"],
    ["model.fan=input", "model.fan_ratio=0.2"],
    ["model.linear=dense", "model.rank=none"],
    ["data.source=stdlib", "data.dataset=none"],
    ["data.part='3/3'"],
    ["data.packing=pad"],
    ["data.packing=pad", "data.attend_across_documents=true"],
    ["data.attend_across_documents=false"],
    ["data.streaming=true", "data.tokenizer=gpt2"],
]


@pytest.mark.parametrize("sets", ALLOWED, ids=",".join)
def test_what_is_just_inside_a_rule_is_allowed(sets: list[str]) -> None:
    resolve("cola", sets=sets)


SOURCES = """
[data.sources.web]
source = "files"
path = "w"
[data.sources.code]
source = "hub"
dataset = "c"
"""
WEB, CODE, BOTH = "weights={web=1.0}", "weights={code=1.0}", "weights={web=0.9,code=0.1}"
LENGTH = ["train.max_steps=10", "train.batch_size=10", "model.seq_len=8"]
"""100 blocks of 8 tokens."""


def stages(*each: str) -> str:
    return "data.stages=[" + ", ".join(f"{{{stage}}}" for stage in each) + "]"


@pytest.mark.parametrize(
    ("each", "field", "rule", "fix"),
    [
        ([WEB], "data.sources", "no stage reads code", "Give it a weight"),
        ([BOTH, BOTH], "data.stages", "stage 1 of 2 needs until_tokens or until_frac", "where it ends"),
        (
            [f"until_frac=0.5,until_tokens=9,{BOTH}", BOTH],
            "data.stages",
            "stage 1 of 2 needs until_tokens",
            "where it ends",
        ),
        ([f"until_frac=0.5,{BOTH}", BOTH, BOTH], "data.stages", "stage 2 of 3 needs until_tokens", "where it ends"),
        ([f"until_frac=0.5,{BOTH}"], "data.stages", "the last stage lasts to the end", "add a stage behind it"),
        ([f"until_tokens=9,{BOTH}"], "data.stages", "the last stage lasts to the end", "add a stage behind it"),
        (
            [f"until_frac=0.5,{WEB}", f"until_frac=0.4,{BOTH}", CODE],
            "data.stages",
            "stage 2 ends at 0.4 and begins at 0.5",
            "in order",
        ),
        ([f"until_frac=0.501,{WEB}", f"until_frac=0.5,{BOTH}", CODE], "data.stages", "stage 2 ends at", "in order"),
        ([f"until_tokens=16,{WEB}", f"until_tokens=15,{BOTH}", CODE], "data.stages", "stage 2 ends at", "in order"),
        ([f"until_tokens=16,{WEB}", f"until_tokens=16,{BOTH}", CODE], "data.stages", "stage 2 ends at", "in order"),
        (["weights={web=0.5,code=0.5,maths=1.0}"], "data.stages", "no source is called maths", "Use web, code."),
        (["weights={web=1.0,code=9e-7}"], "data.stages", "code weighs less than a millionth of another", "more weight"),
        (["weights={web=1.0,code=0.0}"], "data.stages[1].weights.code", "greater than 0", "share of each source"),
        (["weights={}", BOTH], "data.stages[1].weights", "at least 1 item", "share of each source"),
        ([f"until_frac=1.0,{BOTH}", BOTH], "data.stages[1].until_frac", "less than 1", "stage ends"),
        ([f"until_tokens=0,{BOTH}", BOTH], "data.stages[1].until_tokens", "or equal to 1", "stage ends"),
        ([f"until_fraction=0.5,{BOTH}", BOTH], "data.stages[1].until_fraction", "no such field", "mean until_frac?"),
        (
            [f"until_frac=0.5,{BOTH}", f"end=1,{BOTH}"],
            "data.stages[2].end",
            "no such",
            "until_frac, weights",
        ),
        ([f"until_frac=0.5,{BOTH}", f"min_words=1,{BOTH}"], "data.stages[2].min_words", "no such", "under [data]"),
    ],
)
def test_stages_that_cannot_be_followed(
    problems_of: ProblemsOf, preset_file: Callable[[str], str], each: list[str], field: str, rule: str, fix: str
) -> None:
    found = problems_of(stages(*each), *LENGTH, preset=preset_file(SOURCES))
    assert found.keys() == {field}
    assert rule in found[field].rule
    assert fix in found[field].fix


def test_a_sources_faults_are_told_by_its_name_all_of_them(
    problems_of: ProblemsOf, preset_file: Callable[[str], str]
) -> None:
    text = """
[data.sources.books]
source = "file"
textfield = "x"
max_mb = "ten"
min_words = 3
part = "x"
[[data.stages]]
weights = { books = 1.0 }
"""
    found = problems_of(preset=preset_file(text))
    assert found.keys() == {f"data.sources.books.{f}" for f in ("source", "textfield", "max_mb", "min_words", "part")}
    assert found["data.sources.books.textfield"].fix == "Did you mean text_field?"
    assert found["data.sources.books.min_words"].fix == "It is of all the data: set it under [data] as min_words."
    assert found["data.sources.books.max_mb"].value == "ten"


@pytest.mark.parametrize(
    "line", ['source = "files"', 'path = "x.txt"', 'part = "1/2"', "max_mb = 1.0", 'text_field = "t"']
)
def test_one_source_beside_several_is_refused(
    problems_of: ProblemsOf, preset_file: Callable[[str], str], line: str
) -> None:
    name = f"data.{line.partition(' ')[0]}"
    found = problems_of(preset=preset_file(f"[data]\n{line}\n{SOURCES}"))
    assert "data.sources is read instead" in found[name].rule


def test_setting_one_source_of_a_mixture_is_refused_even_where_it_is_the_default(problems_of: ProblemsOf) -> None:
    found = problems_of("data.source=stdlib", preset="smollm2-stages")
    assert found.keys() == {"data.source"}
    assert "would have no effect" in found["data.source"].rule


@pytest.mark.parametrize(
    ("each", "ends"),
    [
        ([BOTH], ()),
        ([f"until_frac=0.5,{WEB}", CODE], (50,)),
        ([f"until_tokens=409,{WEB}", f"until_frac=0.52,{BOTH}", CODE], (52, 52)),
        ([f"until_tokens=8,{WEB}", f"until_tokens=9,{BOTH}", CODE], (1, 2)),
        # Told apart, though in a run as short as this they end in one block.
        ([f"until_tokens=15,{WEB}", f"until_tokens=16,{BOTH}", CODE], (2, 2)),
        ([f"until_frac=0.001,{WEB}", f"until_frac=0.002,{BOTH}", CODE], (0, 0)),
    ],
)
def test_stages_that_can_be_followed(preset_file: Callable[[str], str], each: list[str], ends: tuple[int, ...]) -> None:
    resolved = resolve(preset_file(SOURCES), sets=[stages(*each), *LENGTH])
    assert resolved.config.stage_ends == ends
    assert not any("not reached" in note for note in resolved.notes)


def test_a_stage_behind_the_end_of_the_run_is_told(preset_file: Callable[[str], str]) -> None:
    late = [f"until_tokens=799,{WEB}", f"until_tokens=801,{BOTH}", CODE]
    resolved = resolve(preset_file(SOURCES), sets=[stages(*late), *LENGTH])
    assert resolved.config.stage_ends == (100, 101)
    (note,) = [note for note in resolved.notes if "Stage" in note]
    assert note.startswith("Stage 2 of 3 of the data is not reached: it begins at block 100, and the run ends at block")


@pytest.mark.parametrize("item", ["data.path=x", "data.dataset=x", "data.text_field=x", "data.source=files"])
def test_fields_of_one_source_are_not_for_a_mixture(
    problems_of: ProblemsOf, preset_file: Callable[[str], str], item: str
) -> None:
    """Told once, and never to turn the mixture into something else."""
    problem = problems_of(item, stages(BOTH), preset=preset_file(SOURCES))[item.partition("=")[0]]
    assert "data.sources is read instead" in problem.rule
    assert problem.fix.endswith("or set it in [data.sources.NAME].")


@pytest.mark.parametrize(
    ("text", "field", "rule"),
    [
        ('source = "files"', "data.sources.web.path", "data.sources.web.source = 'files' needs it"),
        ('source = "hub"', "data.sources.web.dataset", "data.sources.web.source = 'hub' needs it"),
        ('path = "x"', "data.sources.web.path", "data.sources.web.source = 'stdlib' does not read it"),
        ('part = "2/1"', "data.sources.web.part", "i is at most n"),
    ],
)
def test_a_named_source_is_held_to_the_rules_of_one(
    problems_of: ProblemsOf, preset_file: Callable[[str], str], text: str, field: str, rule: str
) -> None:
    preset = preset_file(f"[data.sources.web]\n{text}\n[[data.stages]]\nweights = {{web = 1.0}}\n")
    found = problems_of(preset=preset)
    assert found.keys() == {field}
    assert rule in found[field].rule


def test_a_preset_may_hold_what_a_variant_does_not_use(preset_file: Callable[[str], str]) -> None:
    """Only fields set by hand are contradictions: a preset's momentum is simply Muon's when Muon is chosen."""
    preset = preset_file("[model]\nfan_ratio = 0.2\n[optim]\nmomentum = 0.8\n")
    assert resolve(preset).config.optim.momentum == 0.8


def test_a_field_with_a_problem_of_its_own_is_not_judged_with_others(problems_of: ProblemsOf) -> None:
    found = problems_of("model.n_heads=x", "model.d_model=100", "train.batch_size=0", "train.micro_batch_size=3")
    assert found.keys() == {"model.n_heads", "train.batch_size"}


@given(d_model=st.integers(2, 400), n_heads=st.integers(2, 40), n_kv_heads=st.integers(1, 40))
def test_every_number_of_heads_that_is_suggested_would_do(d_model: int, n_heads: int, n_kv_heads: int) -> None:
    assume(d_model % n_heads or n_heads % n_kv_heads)
    model = ModelConfig(d_model=d_model, n_heads=n_heads, n_kv_heads=n_kv_heads, linear="dense")
    whole = {"model.n_heads": d_model, "model.n_kv_heads": n_heads}
    found = [p for p, _ in rules.check(RunConfig(model=model)) if p.fix.startswith("Use one of")]
    assert found
    for problem in found:
        suggested = [int(number) for number in re.findall(r"\d+", problem.fix)]
        assert suggested
        assert all(whole[problem.field] % number == 0 for number in suggested)
