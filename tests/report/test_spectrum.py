"""Spectra as a reader sees them: a row a place, what the paper claims, and a figure that is the same each time."""

from dataclasses import replace
from pathlib import Path

import pytest

from colakit.errors import FigureError
from colakit.records.spectrum import PlaceSpectrum, SpectrumRecord
from colakit.report.figures import draw_spectrum, spectrum_figure
from colakit.report.spectrum import spectrum_notes, spectrum_table

RECORD = SpectrumRecord(
    preset="cola-fan",
    step=1234,
    tokens=2560,
    energy_frac=0.95,
    places=(
        PlaceSpectrum(0, "attention_input", 4, (1.0, 0.5, 0.25, 0.125), 2, 1),
        PlaceSpectrum(0, "mlp_hidden", 1280, (1.0, 0.5, 0.0), 320, 512),
        PlaceSpectrum(1, "attention_input", 4, (1.0, 0.75, 0.5, 0.0), 3, 1),
        PlaceSpectrum(1, "mlp_hidden", 1280, (0.0, 0.0, 0.0), 0, 512),
    ),
)
DENSE = replace(RECORD, places=tuple(replace(p, layer_rank=None) for p in RECORD.places))


def test_every_place_of_every_block_is_a_row(shown) -> None:  # type: ignore[no-untyped-def]
    assert shown(spectrum_table(RECORD)) == [
        "cola-fan, step 1,234: effective rank at 95 % of the energy",
        "block  activations  effective rank  of  share  layer's rank",
        "0  what Q, K, V read  2  4  50.0 %  1",
        "0  what down reads  320  1,280  25.0 %  512",
        "1  what Q, K, V read  3  4  75.0 %  1",
        "1  what down reads  0  1,280  0.0 %  512",
    ]


def test_a_dense_layer_has_no_rank_to_compare(shown) -> None:  # type: ignore[no-untyped-def]
    assert [line.split("  ")[-1] for line in shown(spectrum_table(DENSE))[2:]] == ["dense"] * 4
    assert not any("above that of the layer" in note for note in spectrum_notes(DENSE))


def test_notes_say_what_was_measured_and_what_is_the_papers() -> None:
    definition, sample, above, paper = spectrum_notes(RECORD)
    assert "squares sum to 95 %" in definition
    assert "not centred" in definition
    assert "2,560 tokens, 2.0 for each of the 1,280 dimensions" in sample
    assert above == "In 2 of 4 places the effective rank is above that of the layer that reads."
    assert paper.startswith("The paper's claim (§2.2, Figure 3)")
    assert "99 %" in spectrum_notes(replace(RECORD, energy_frac=0.99))[0]


def test_the_figure_has_a_column_a_place() -> None:
    figure = draw_spectrum(RECORD)
    attention, hidden, *_ = figure.axes
    assert [axes.get_title(loc="left") for axes in (attention, hidden)] == ["what Q, K, V read", "what down reads"]
    for axes, ranks, width, layer in ((attention, [2, 3], 4, 1), (hidden, [320, 0], 1280, 512)):
        assert [bar.get_height() for bar in axes.patches] == ranks  # type: ignore[attr-defined]
        assert {str(line.get_label()): list(line.get_ydata()) for line in axes.lines} == {  # type: ignore[arg-type]
            "full width": [width] * 2,
            "layer's rank": [layer] * 2,
        }
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == ["block 0", "block 1", "effective rank", "full width", "layer's rank"]


def test_the_spectra_are_on_a_logarithmic_scale_without_their_zeros() -> None:
    *_, attention, hidden = draw_spectrum(RECORD).axes
    drawn = [[(list(line.get_xdata()), list(line.get_ydata())) for line in a.lines] for a in (attention, hidden)]  # type: ignore[arg-type]
    assert drawn == [
        [([1, 2, 3, 4], [1.0, 0.5, 0.25, 0.125]), ([1, 2, 3], [1.0, 0.75, 0.5])],
        [([1, 2], [1.0, 0.5]), ([], [])],
    ]
    assert attention.get_yscale() == hidden.get_yscale() == "log"
    looks = {(line.get_color(), line.get_linestyle()) for line in attention.lines}
    assert len({style for _, style in looks}) == len({colour for colour, _ in looks}) == 2


def test_of_a_dense_model_no_rank_is_drawn() -> None:
    assert [str(line.get_label()) for line in draw_spectrum(DENSE).axes[0].lines] == ["full width"]


@pytest.mark.parametrize("record", [RECORD, DENSE])
def test_an_svg_is_the_same_byte_for_byte(tmp_path: Path, record: SpectrumRecord) -> None:
    paths = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for path in paths:
        spectrum_figure(path, record)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert first.startswith(b"<?xml")


def test_a_png_is_written_and_where_it_lies_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "spectrum.png"
    spectrum_figure(path, RECORD)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "Drawn:" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(FigureError, match="cannot be written"):
        spectrum_figure(tmp_path / "absent" / "spectrum.svg", RECORD)
