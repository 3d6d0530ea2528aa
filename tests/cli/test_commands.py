"""What `presets`, `params` and `flops` print: tables for people, one JSON object for programs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colakit.analysis.flops import Sizes, forward_flops, table6
from colakit.analysis.params import count_params, total_params
from colakit.cli.presets import as_set_takes_it
from colakit.config.fields import known_fields
from colakit.config.load import resolve
from colakit.config.presets import preset_names

Run = Callable[..., Any]  # Any: conftest's Outcome, which cannot be imported from here


def one_object(text: str) -> dict[str, Any]:  # Any: JSON values
    """The only JSON object of `text`, which is one line of strict, plain JSON."""
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert "\x1b" not in text
    value = json.loads(text, parse_constant=pytest.fail)
    assert isinstance(value, dict)
    assert value["schema"] == 1
    return value


@pytest.mark.parametrize(
    "args",
    [
        ["presets"],
        ["presets", "show", "refined"],
        ["presets", "show", "cola", "--smoke", "--data", "x.txt", "--set", "train.max_steps=9"],
        ["params"],
        ["params", "-p", "cola"],
        ["flops"],
        ["flops", "-p", "cola", "--batch-size", "3"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("colours", [False, True])
def test_json_is_one_object_and_nothing_else(
    colakit: Run, monkeypatch: pytest.MonkeyPatch, args: list[str], colours: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    if colours:
        monkeypatch.setenv("FORCE_COLOR", "1")
    outcome = colakit(*args, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    one_object(outcome.out)


# presets


def test_presets_lists_every_preset(colakit: Run) -> None:
    outcome = colakit("presets")
    assert outcome.code == 0
    listed = [line.split()[0] for line in outcome.out.splitlines() if line.strip()]
    assert listed[-len(preset_names()) :] == preset_names()
    assert "§6.2, tied" in outcome.out
    assert "refined, with tied embeddings" in outcome.out


def test_presets_json(colakit: Run) -> None:
    presets = one_object(colakit("presets", "--json").out)["presets"]
    assert [p["preset"] for p in presets] == preset_names()
    assert presets[-1] == {
        "preset": "refined-tied",
        "paper": "§6.2, tied",
        "summary": "refined, with tied embeddings",
    }


def test_show_prints_every_field_with_its_origin(colakit: Run) -> None:
    args = ["presets", "show", "cola", "--data", "/[bold]x", "--set", "train.max_steps=50", "--set", "model.rank=8"]
    outcome = colakit(*args)
    shown = {words[0]: words[1:] for line in outcome.out.splitlines() if (words := line.split()) and "." in words[0]}
    assert [field for field in known_fields() if field not in shown] == []
    assert shown["model.vocab_size"] == ["102000", "preset"]
    assert shown["model.rank"] == ["8", "--set"]
    assert shown["data.path"] == ["/[bold]x", "--data"]
    assert shown["data.dataset"] == ["none", "--data"]
    assert shown["model.tie_embeddings"] == ["false", "default"]
    assert shown["model.qkv_norm"] == ["rms", "derived"]
    assert "optim.warmup_steps is 5 instead of 2000" in outcome.out


def test_show_prints_markup_in_a_preset_as_it_is(colakit: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[about]\nsummary = "[red]mine[/]"\npaper = "[about]"\n')
    assert "[red]mine[/] (paper: [about])" in colakit("presets", "show", str(path)).out


def test_show_json(colakit: Run) -> None:
    shown = one_object(colakit("presets", "show", "original", "--smoke", "--json").out)
    assert (shown["preset"], shown["paper"]) == ("original", "Tables 4-5, Original")
    assert list(shown["fields"]) == list(known_fields())
    assert shown["fields"]["model.linear"] == {"value": "dense", "origin": "preset"}
    assert shown["fields"]["model.d_model"] == {"value": 256, "origin": "--smoke"}
    assert shown["fields"]["data.dataset"] == {"value": None, "origin": "--smoke"}
    assert shown["notes"] == []


@pytest.mark.parametrize("preset", preset_names())
def test_what_show_prints_can_be_set(preset: str) -> None:
    """Every value as shown, given back through --set, is the same configuration."""
    config = resolve(preset, smoke_run=True).config
    unused = set()
    if config.model.linear == "dense":
        unused.add("model.rank")
    if config.model.fan == "none":
        unused.add("model.fan_ratio")
    if config.optim.optimizer == "adamw":
        unused |= {"optim.momentum", "optim.ns_steps"}
    values = {f"{s}.{k}": v for s, fields in config.model_dump(exclude={"preset"}).items() for k, v in fields.items()}
    sets = [f"{field}={as_set_takes_it(value)}" for field, value in values.items() if field not in unused]
    assert resolve(preset, sets=sets).config == config


# params


def test_params_of_one_preset(colakit: Run) -> None:
    lines = [line.split() for line in colakit("params", "--preset", "cola").out.splitlines()]
    rows = {words[0]: words[1:] for words in lines if words}
    model = resolve("cola").config.model
    for count in count_params(model):
        assert rows[count.component][0] == f"{count.parameters:,}"
    assert rows["total"] == [f"{total_params(model):,}"]
    assert rows["paper's"] == ["total", "156M*", "-10.8", "%"]
    assert rows["*"][:4] == ["cola:", "the", "printed", "figure"]


def test_params_of_all_presets(colakit: Run) -> None:
    out = colakit("params").out
    rows = {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}
    assert [name for name in rows if name in preset_names()] == preset_names()
    assert rows["original"][-5:] == ["234.54", "156.21", "236M", "-0.6", "%"]
    assert rows["cola"][-3:] == ["156M*", "-10.8", "%"]
    assert rows["cola-fan-atf"][-2:] == ["n/a", "n/a"]
    assert rows["cola-fan-atf"][2] == "6.02"
    assert out.count("* cola: the printed figure cannot be met") == 1
    assert "n/a for cola-m, cola-fan-atf: the paper prints no figure for this preset." in out


def test_params_json_of_several(colakit: Run) -> None:
    models = one_object(colakit("params", "-p", "refined-tied", "-p", "cola", "--json").out)["models"]
    assert [model["preset"] for model in models] == ["refined-tied", "cola"]
    for model in models:
        components = model["components"]
        assert {c["kind"] for c in components} == {"params"}
        assert {c["preset"] for c in components} == {model["preset"]}
        assert model["total"] == sum(c["parameters"] for c in components)
        assert model["deviation_frac"] == pytest.approx(model["total"] / model["paper_parameters"] - 1)
    assert (models[0]["paper_parameters"], models[0]["paper_table"]) == (82_200_000, "§6.2.3")
    assert models[0]["contradiction"] is None
    assert "150M" in models[1]["contradiction"]


@pytest.mark.parametrize("change", [["--smoke"], ["--set", "model.n_layers=3"]])
def test_a_changed_size_is_not_compared_with_the_paper(colakit: Run, change: list[str]) -> None:
    (model,) = one_object(colakit("params", "-p", "cola", "--json", *change).out)["models"]
    assert (model["paper_parameters"], model["deviation_frac"]) == (None, None)
    assert "changed the preset's size" in model["reason"]


def test_an_override_that_keeps_the_size_is_compared(colakit: Run) -> None:
    args = ["params", "-p", "cola", "--set", "model.attention=sdpa", "--set", "train.seed=3", "--json"]
    assert one_object(colakit(*args).out)["models"][0]["paper_parameters"] == 156_000_000


def test_a_file_that_bears_a_presets_name_is_not_that_preset(colakit: Run, tmp_path: Path) -> None:
    path = tmp_path / "original.toml"
    path.write_text('[model]\nlinear = "dense"\nvocab_size = 102_000\n')
    (model,) = one_object(colakit("params", "-p", str(path), "--json").out)["models"]
    assert model["paper_parameters"] is None
    assert "file of your own" in model["reason"]


# flops


def test_flops_prints_table_6_in_both_conventions(colakit: Run) -> None:
    out = colakit("flops").out
    rows = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    qkv = rows["attention Q, K, V"]
    assert [cell in qkv for cell in ("6nd² = 3.62G", "48ndr* = 7.25G", "+100.0 %", "12ndr = 1.81G", "-50.0 %")]
    assert "-65.6 %" in rows["feed-forward"]
    assert "18nr(d+d_ff)* =" in rows["feed-forward"]
    assert "-50.0 %" in rows["attention projection"]
    assert "*" not in rows["attention product"]
    assert "mix two conventions" in out
    assert out.count("\n* ") == 3


def test_flops_json_at_other_sizes(colakit: Run) -> None:
    printed = one_object(colakit("flops", "--d", "8", "--r", "5", "--d-ff", "7", "--n", "2", "--json").out)
    table = table6(Sizes(n=2, d=8, r=5, d_ff=7))
    assert printed["sizes"] == {"n": 2, "d": 8, "r": 5, "d_ff": 7}
    for row, expected in zip([*printed["rows"], printed["total"]], [*table.rows, table.total], strict=True):
        assert row["component"] == expected.component
        assert row["original"]["flops"] == expected.original.flops
        assert row["cola_printed"]["flops"] == expected.cola_printed.flops
        assert row["cola_forward"]["flops"] == expected.cola_forward.flops
        assert row["cola_forward"]["formula"] == expected.cola_forward.formula
        assert row["contradiction"] == expected.contradiction


def test_flops_takes_the_papers_sizes_where_none_are_given(colakit: Run) -> None:
    assert one_object(colakit("flops", "--n", "5", "--json").out)["sizes"] == {"n": 5, "d": 768, "r": 192, "d_ff": 2048}
    assert one_object(colakit("flops", "--json").out)["sizes"] == {"n": 1024, "d": 768, "r": 192, "d_ff": 2048}


@pytest.mark.parametrize(("args", "batch_size"), [([], 64), (["--batch-size", "3"], 3)])
def test_flops_of_a_preset(colakit: Run, args: list[str], batch_size: int) -> None:
    expected = forward_flops(resolve("cola-m").config.model, batch_size)
    printed = one_object(colakit("flops", "--preset", "cola-m", "--json", *args).out)
    assert (printed["preset"], printed["batch_size"], printed["seq_len"]) == ("cola-m", batch_size, 1024)
    assert [(c["component"], c["flops"]) for c in printed["components"]] == [
        (c.component, c.flops) for c in expected.components
    ]
    assert printed["total_flops"] == expected.total
    assert printed["causal_attention_product_flops"] == expected.causal_attention_product
    table = colakit("flops", "--preset", "cola-m", *args).out
    assert f"{expected.total:,}" in table
    assert "not counted" in table


def test_flops_of_a_preset_takes_overrides(colakit: Run) -> None:
    small = resolve("cola", smoke_run=True, sets=["model.n_layers=1"]).config
    args = ["flops", "-p", "cola", "--smoke", "--set", "model.n_layers=1", "--json"]
    assert one_object(colakit(*args).out)["total_flops"] == forward_flops(small.model, small.train.batch_size).total
