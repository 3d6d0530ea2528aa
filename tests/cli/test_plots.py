"""`--plot`: what is drawn, and what is refused before anything is counted."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from colakit.analysis.flops import step_flops
from colakit.analysis.params import count_params, total_params
from colakit.analysis.table6 import Sizes, table6
from colakit.cli import flops as flops_module
from colakit.cli import params as params_module
from colakit.config.load import resolve

Run = Callable[..., Any]  # Any: conftest's Outcome, which cannot be imported from here
Bars = Mapping[str, Mapping[str, float]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Bars]]:
    """Unit and bars of every figure asked for."""
    calls: list[tuple[str, Bars]] = []
    for module in (flops_module, params_module):
        monkeypatch.setattr(module, "stacked_bars", lambda _path, _title, unit, bars: calls.append((unit, bars)))
    return calls


def test_parameters_in_millions(colakit: Run, drawn: list[tuple[str, Bars]]) -> None:
    colakit("params", "-p", "cola", "-p", "cola-fan-atf", "--plot", "a.svg")
    ((unit, bars),) = drawn
    assert unit == "million parameters"
    for name, bar in bars.items():
        model = resolve(name).config.model
        assert bar == {c.name: c.params / 1e6 for c in count_params(model)}
        assert sum(bar.values()) == pytest.approx(total_params(model) / 1e6)
    assert list(bars) == ["cola", "cola-fan-atf"]


def test_a_token_in_megaflop_with_its_recompute_and_muon(colakit: Run, drawn: list[tuple[str, Bars]]) -> None:
    colakit("flops", "-p", "cola-fan-muon", "--set", "model.remat=cola_m", "--plot", "a.svg")
    ((unit, bars),) = drawn
    step = step_flops(resolve("cola-fan-muon", sets=["model.remat=cola_m"]).config)
    assert unit == "MFLOP"
    mega = 1e6 * step.tokens
    bar = bars["cola-fan-muon"]
    assert bar["recompute"] == step.recompute / step.tokens / 1e6 > 0
    assert bar["Newton–Schulz"] == step.newton_schulz / step.tokens / 1e6 > 0
    assert sum(bar.values()) == pytest.approx(step.hardware_flops / mega)


def test_table_6_in_gigaflop(colakit: Run, drawn: list[tuple[str, Bars]]) -> None:
    colakit("flops", "--n", "10", "--plot", "a.svg")
    ((unit, bars),) = drawn
    totals = table6(Sizes(n=10, d=768, r=192, d_ff=2048)).totals
    assert unit == "GFLOP"
    assert {name: sum(bar.values()) for name, bar in bars.items()} == pytest.approx(
        {
            "Original": totals.dense_forward / 1e9,
            "CoLA as printed": totals.paper_cola / 1e9,
            "CoLA": totals.cola_forward / 1e9,
        }
    )


@pytest.mark.parametrize("command", [["params"], ["params", "-p", "cola"], ["flops"], ["flops", "-p", "cola-m"]])
@pytest.mark.parametrize(("name", "magic"), [("a.svg", b"<?xml"), ("b.png", b"\x89PNG")])
def test_a_plot_is_written(colakit: Run, tmp_path: Path, command: list[str], name: str, magic: bytes) -> None:
    outcome = colakit(*command, "--plot", str(tmp_path / name))
    assert outcome.code == 0
    assert outcome.err.replace("\n", "") == f"Drawn: {tmp_path / name}"
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_a_plot_has_the_components_of_every_preset(colakit: Run, tmp_path: Path) -> None:
    """Also those that the first preset has not."""
    assert (
        colakit("flops", "-p", "cola", "-p", "cola-fan-atf", "-p", "cola-m", "--plot", str(tmp_path / "a.svg")).code
        == 0
    )
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert [name for name in ("fan", "head", "recompute") if f"<!-- {name} -->" not in drawn] == []


def test_a_file_that_bears_a_presets_name_has_a_bar_of_its_own(colakit: Run, tmp_path: Path) -> None:
    (tmp_path / "cola.toml").write_text("[model]\nn_layers = 2\n")
    names = ["cola", str(tmp_path / "cola.toml")]
    for command in ("params", "flops"):
        assert colakit(command, "-p", names[0], "-p", names[1], "--plot", str(tmp_path / "a.svg")).code == 0
        drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
        assert [name for name in names if f"<!-- {name} -->" not in drawn] == []


@pytest.mark.parametrize("name", ["a.pdf", "a", ".", "missing/a.svg", "x" * 300 + ".svg"])
def test_a_plot_that_cannot_be_written_is_refused_first(colakit: Run, tmp_path: Path, name: str) -> None:
    for command in ("params", "flops"):
        outcome = colakit(command, "--plot", str(tmp_path / name))
        assert (outcome.code, outcome.out) == (2, "")
        assert outcome.err.startswith("Error: ")
    assert list(tmp_path.iterdir()) == []
