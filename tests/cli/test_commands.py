"""What `presets`, `params` and `flops` print: tables for people, one JSON object for programs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colakit.analysis.flops import step_flops
from colakit.analysis.inventory import parameters
from colakit.analysis.params import count_params, total_params
from colakit.cli.presets import as_set_takes_it
from colakit.config.fields import known_fields
from colakit.config.load import resolve
from colakit.config.presets import preset_names
from colakit.config.schema import SourceConfig

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
        ["flops", "-p", "cola", "-p", "cola-m"],
        ["params", "-p", "cola", "--routing", "--memory", "--batch-size", "4", "--seq-len", "128"],
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
    assert [p["name"] for p in presets] == preset_names()
    assert presets[-2] == {
        "name": "refined-tied",
        "paper_row": "§6.2, tied",
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
    assert "data.cache_dir is unset: the user's cache folder." in outcome.out
    assert "model.rank is unset: d_in // 4 per layer." in colakit("presets", "show", "cola").out


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
        unused |= {f"optim.{key}" for key in ("momentum", "nesterov", "ns_steps", "ns_coefficients", "update_scaling")}
    if config.data.sources:
        unused |= {f"data.{key}" for key in SourceConfig.model_fields}
    values = {f"{s}.{k}": v for s, fields in config.model_dump(exclude={"preset"}).items() for k, v in fields.items()}
    sets = [f"{field}={as_set_takes_it(value)}" for field, value in values.items() if field not in unused]
    assert resolve(preset, sets=sets).config == config


# params


def test_params_of_one_preset(colakit: Run) -> None:
    lines = [line.split() for line in colakit("params", "--preset", "cola").out.splitlines()]
    rows = {words[0]: words[1:] for words in lines if words}
    model = resolve("cola").config.model
    for count in count_params(model):
        assert rows[count.name][0] == f"{count.params:,}"
    assert rows["embedding"] == ["78,336,000", "56.3", "%"]
    assert rows["total"] == [f"{total_params(model):,}"]
    assert rows["paper's"] == ["total", "156M*", "-10.8", "%"]
    assert rows["*"][:4] == ["cola:", "the", "printed", "figure"]


def test_params_of_all_presets(colakit: Run) -> None:
    out = colakit("params").out
    rows = {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}
    assert [name for name in rows if name in preset_names()] == preset_names()
    assert rows["original"][-6:] == ["234.54", "–", "156.21", "236M", "-0.6", "%"]
    assert rows["cola-smollm2"][-7:-4] == ["88.38", "-62.3", "%"]  # of original; the paper's reduction is 63.5 %
    assert rows["cola"][-3:] == ["156M*", "-10.8", "%"]
    assert rows["cola-fan-atf"][5] == "6.02"
    assert rows["cola-fan-atf"][-3:] == ["92.2M", "+2.4", "%"]
    assert rows["cola-m"][-3:] == ["86.2M", "+2.5", "%"]
    assert out.count("* cola: the printed figure cannot be met") == 1


def test_params_json(colakit: Run) -> None:
    one = one_object(colakit("params", "-p", "cola", "--json").out)
    several = one_object(colakit("params", "-p", "refined-tied", "-p", "cola", "--json").out)["presets"]
    assert [model["preset"] for model in several] == ["refined-tied", "cola"]
    assert several[1] == {key: value for key, value in one.items() if key != "schema"}
    for model in several:
        assert model["total"] == sum(c["params"] for c in model["components"])
        assert sum(c["share_frac"] for c in model["components"]) == pytest.approx(1.0)
        assert model["claim"]["deviation_frac"] == pytest.approx(model["total"] / model["claim"]["value"] - 1)
    assert {c["name"]: c["params"] for c in one["components"]} == {
        c.name: c.params for c in count_params(resolve("cola").config.model)
    }
    assert one["non_embedding"] == one["total"] - 102_000 * 768
    assert (several[0]["claim"]["value"], several[0]["claim"]["table"]) == (82_200_000, "§6.2.3")
    assert several[0]["claim"]["contradiction"] is None
    assert "150" in one["claim"]["contradiction"]


@pytest.mark.parametrize("change", [["--smoke"], ["--set", "model.n_layers=3"]])
def test_a_changed_size_is_not_compared_with_the_paper(colakit: Run, change: list[str]) -> None:
    model = one_object(colakit("params", "-p", "cola", "--json", *change).out)
    assert model["claim"] is None
    assert "changed the preset's size" in model["reason"]


def test_an_override_that_keeps_the_size_is_compared(colakit: Run) -> None:
    args = ["params", "-p", "cola", "--set", "model.attention=sdpa", "--set", "train.seed=3", "--json"]
    assert one_object(colakit(*args).out)["claim"]["value"] == 156_000_000


def test_a_file_that_bears_a_presets_name_is_not_that_preset(colakit: Run, tmp_path: Path) -> None:
    path = tmp_path / "original.toml"
    path.write_text('[model]\nlinear = "dense"\nvocab_size = 102_000\n')
    model = one_object(colakit("params", "-p", str(path), "--json").out)
    assert model["claim"] is None
    assert "file of your own" in model["reason"]


def test_routing_lists_every_parameter_once(colakit: Run) -> None:
    args = ["params", "-p", "cola-fan-muon", "--routing"]
    routing = one_object(colakit(*args, "--json").out)["routing"]
    model = resolve("cola-fan-muon").config.model
    assert [(p["name"], tuple(p["shape"])) for p in routing] == [(p.name, p.shape) for p in parameters(model)]
    assert {p["optimizer"] for p in routing if p["role"] == "matrix"} == {"muon"}
    assert {p["optimizer"] for p in routing if p["role"] != "matrix"} == {"adamw"}
    assert {p["role"] for p in routing if not p["weight_decay"]} == {"norm", "bias"}
    rows = {words[0]: words[1:] for line in colakit(*args).out.splitlines() if (words := line.split())}
    assert rows["blocks.*.attention.q_proj.a_p"] == ["matrix", "muon", "yes", "192×768", "1", "12"]
    assert rows["blocks.*.attention_norm.weight"] == ["norm", "adamw", "no", "768", "–", "1"]  # HybridNorm's first


def test_the_ledger_takes_batch_and_length(colakit: Run) -> None:
    args = ["params", "-p", "cola-m", "--memory", "--batch-size", "4", "--seq-len", "128"]
    memory = one_object(colakit(*args, "--json").out)["memory"]
    assert (memory["batch_size"], memory["seq_len"]) == (4, 128)
    assert (memory["device"], memory["dtype"], memory["is_cola_m"]) == ("cuda", "bfloat16", True)
    fixed = sum(memory[part] for part in ("weights", "gradients", "muon_state", "adamw_state"))
    kept = fixed + memory["cola_m_activations"]
    held = ("weight_copies", "chunked_logits", "loss_workspace", "loss_gradients")
    loss = sum(memory[part] for part in held)
    first_gradients = 4 * 128 * (2 * 2048 + (2 * 4 + 2) * 768)
    assert memory["cola_m_total"] == kept + max(loss, memory["recomputed_block"] + first_gradients)
    assert memory["plain_total"] == fixed + memory["plain_activations"] + loss
    on_cpu = one_object(colakit(*args, "--set", "train.device=cpu", "--json").out)["memory"]
    assert (on_cpu["device"], on_cpu["dtype"], on_cpu["weight_copies"]) == ("cpu", "float32", 0)
    out = colakit(*args).out
    assert "Memory of cola-m: 4 × 128 tokens, bfloat16, CUDA" in " ".join(out.split())
    rows = {line[:28].strip(): line.split() for line in out.splitlines()}
    assert rows["weights"][-1] == f"{memory['weights'] / 2**30:.3f}"
    assert rows["total"][-2:] == [f"{memory[f'{kind}_total'] / 2**30:.3f}" for kind in ("plain", "cola_m")]


# flops


def test_flops_prints_table_6_three_ways(colakit: Run) -> None:
    out = colakit("flops").out
    rows = {line.split("  ")[0].strip(): line.split("  ") for line in out.splitlines()}
    cells = {name: [cell.strip() for cell in row[1:] if cell.strip()] for name, row in rows.items()}
    assert cells["attention Q, K, V"] == [
        *("6nd² = 3.62G", "48ndr = 7.25G*", "2.000", "12ndr = 1.81G", "0.500", "18nd² = 10.9G", "36ndr = 5.44G")
    ]
    assert cells["feed-forward"][2:5] == ["1.031", "6nr(d+d_ff) = 3.32G", "0.344"]
    assert cells["total"] == ["17.7G", "22.9G*", "1.290", "8.96G", "0.506", "53.2G", "26.9G"]
    assert "* 48ndr (attention Q, K, V) is 4 × its forward pass." in out
    assert "* 18nr(d+d_ff) (feed-forward) is 3 × its forward pass." in out
    assert out.count("\n* ") == 3


def test_flops_json_has_every_column(colakit: Run) -> None:
    printed = one_object(colakit("flops", "--d", "8", "--r", "5", "--d-ff", "7", "--n", "2", "--json").out)
    assert (printed["n"], printed["d"], printed["r"], printed["d_ff"]) == (2, 8, 5, 7)
    qkv = printed["components"][0]
    dense, cola = 6 * 2 * 64, 12 * 2 * 8 * 5
    assert (qkv["name"], qkv["paper_dense"], qkv["paper_cola"]) == ("attention Q, K, V", dense, 4 * cola)
    assert (qkv["dense_forward"], qkv["cola_forward"]) == (dense, cola)
    assert (qkv["dense_training"], qkv["cola_training"]) == (3 * dense, 3 * cola)
    for column in ("dense_forward", "cola_forward", "dense_training", "cola_training", "paper_dense", "paper_cola"):
        assert printed["totals"][column] == sum(c[column] for c in printed["components"])


@pytest.mark.parametrize(
    ("args", "sizes"),
    [
        ([], (1024, 768, 192, 2048)),
        (["--n", "5"], (5, 768, 192, 2048)),
        (["--d", "96"], (1024, 96, 24, 256)),
        (["--d", "96", "--r", "7"], (1024, 96, 7, 256)),
    ],
)
def test_sizes_of_table_6_are_the_papers_or_in_its_proportions(
    colakit: Run, args: list[str], sizes: tuple[int, ...]
) -> None:
    printed = one_object(colakit("flops", *args, "--json").out)
    assert (printed["n"], printed["d"], printed["r"], printed["d_ff"]) == sizes


@pytest.mark.parametrize(("args", "batch_size"), [([], 64), (["--batch-size", "3"], 3)])
def test_flops_of_a_preset(colakit: Run, args: list[str], batch_size: int) -> None:
    expected = step_flops(resolve("cola-m", sets=[f"train.batch_size={batch_size}"]).config)
    printed = one_object(colakit("flops", "--preset", "cola-m", "--json", *args).out)
    assert (printed["preset"], printed["batch_size"], printed["seq_len"]) == ("cola-m", batch_size, 1024)
    assert [(c["name"], c["forward"], c["training"]) for c in printed["components"]] == [
        (c.name, c.forward, c.training) for c in expected.components
    ]
    for figure in ("model_flops", "causal_model_flops", "recompute", "newton_schulz", "hardware_flops"):
        assert printed[figure] == getattr(expected, figure)
    assert printed["attention_pairs"] == "all"
    table = colakit("flops", "--preset", "cola-m", *args).out
    assert f"{expected.hardware_flops:,}" in table
    assert f"From {expected.attention_overtakes_at:,} tokens" in table
    assert f"a run of 10,000 such steps is {expected.hardware_flops / 1e14:.3g} × 10¹⁸ hardware FLOPs" in table


def test_flops_of_a_preset_at_another_length(colakit: Run) -> None:
    args = ["flops", "--preset", "cola", "--batch-size", "2", "--seq-len", "300", "--json"]
    printed = one_object(colakit(*args).out)
    expected = step_flops(resolve("cola", sets=["train.batch_size=2", "model.seq_len=300"]).config)
    assert (printed["tokens"], printed["hardware_flops"]) == (600, expected.hardware_flops)


def test_flops_of_several_presets_are_one_table(colakit: Run) -> None:
    args = ["flops", "-p", "original", "-p", "cola-fan-muon"]
    presets = one_object(colakit(*args, "--json").out)["presets"]
    assert [p["preset"] for p in presets] == ["original", "cola-fan-muon"]
    rows = {words[0]: words[1:] for line in colakit(*args).out.splitlines() if (words := line.split())}
    for p in presets:
        assert f"{p['hardware_flops'] / 1e9:,.0f}" in rows[p["preset"]]


def test_flops_of_a_preset_takes_overrides(colakit: Run) -> None:
    small = resolve("cola", smoke_run=True, sets=["model.n_layers=1"]).config
    args = ["flops", "-p", "cola", "--smoke", "--set", "model.n_layers=1", "--json"]
    assert one_object(colakit(*args).out)["model_flops"] == step_flops(small).model_flops
