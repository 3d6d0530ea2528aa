"""Figures that stay readable in grey print and for colour-blind readers: stacked bars, and spectra of activations."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from colakit.errors import FigureError
from colakit.records.spectrum import PlaceSpectrum, SpectrumRecord
from colakit.report.spectrum import PLACE_NAMES, spectrum_title
from colakit.report.tables import print_note, stderr_console

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png")

# Okabe and Ito's colours, which differ in lightness too, and hatches for where there is no colour at all.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
_HATCHES = ("", "//", "..", "\\\\", "xx", "--", "oo", "++")
_DASHES = ("-", "--", "-.", ":")


def check_figure(path: Path) -> None:
    """Raise FigureError where `path` is no figure that can be written, before anything is counted."""
    if path.suffix.lower() not in FORMATS:
        raise FigureError(f"{path}: a figure's name ends in {' or '.join(FORMATS)}.")
    try:
        is_folder, has_folder = path.is_dir(), path.parent.is_dir()
    except OSError as error:
        raise FigureError(f"{path}: {error.strerror}. Choose another.") from None
    if is_folder or not has_folder:
        raise FigureError(f"{path}: {'is a folder' if is_folder else 'its folder does not exist'}. Choose another.")


def stacked_bars(path: Path, title: str, unit: str, bars: Mapping[str, Mapping[str, float]]) -> None:
    """Write one horizontal bar a key of `bars`, stacked by component, in `unit`, and say where. Raises FigureError."""
    _save(draw_bars(title, unit, bars), path)


def spectrum_figure(path: Path, record: SpectrumRecord) -> None:
    """Write the spectra of `record`, after the paper's Figure 3, and say where. Raises FigureError."""
    _save(draw_spectrum(record), path)


def _save(figure: "Figure", path: Path) -> None:
    """Write `figure`: an .svg is the same, byte for byte, each time."""
    from matplotlib import rc_context

    metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
    try:
        with rc_context({"svg.hashsalt": "colakit"}):  # else its ids are random
            figure.savefig(path, dpi=200, metadata=metadata)
    except OSError as error:
        raise FigureError(f"{path} cannot be written: {error.strerror or error}. Choose another place.") from error
    print_note(f"Drawn: {path}", stderr_console())


def draw_bars(title: str, unit: str, bars: Mapping[str, Mapping[str, float]]) -> "Figure":
    """The figure that `stacked_bars` writes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = [part for part in dict.fromkeys(chain(*bars.values())) if any(bar.get(part) for bar in bars.values())]
    figure = Figure(figsize=(9.0, 1.8 + 0.45 * len(bars)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    left = dict.fromkeys(bars, 0.0)
    for i, part in enumerate(parts):
        widths = [bar.get(part, 0.0) for bar in bars.values()]
        # A colour with another hatch each time round, so that every part differs from every other.
        hatch = _HATCHES[(i + i // len(_COLOURS)) % len(_HATCHES)]
        axes.barh(
            list(bars),
            widths,
            left=list(left.values()),
            label=part,
            color=_COLOURS[i % len(_COLOURS)],
            hatch=hatch,
            edgecolor="black",
            linewidth=0.6,
        )
        left = {name: start + width for (name, start), width in zip(left.items(), widths, strict=True)}
    axes.invert_yaxis()
    axes.margins(x=0.02)
    axes.set_xlim(left=0.0)
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    return figure


def draw_spectrum(record: SpectrumRecord) -> "Figure":
    """The figure that `spectrum_figure` writes: a column a place; above the effective ranks, below the spectra."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(p.place for p in record.places))
    figure = Figure(figsize=(1.0 + 4.0 * len(kinds), 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(kinds), squeeze=False)
    for (above, below), kind in zip(grid.T, kinds, strict=True):
        blocks = [p for p in record.places if p.place == kind]
        above.set_title(PLACE_NAMES[kind], loc="left")
        _draw_ranks(above, blocks)
        _draw_spectra(below, blocks)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel("dimensions")
    grid[1, 0].set_ylabel("singular value, of the largest")
    figure.suptitle(spectrum_title(record), x=0.01, ha="left")
    handles, labels = (a + b for a, b in zip(*(row[0].get_legend_handles_labels() for row in grid), strict=True))
    figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False)
    return figure


def _draw_ranks(axes: "Axes", blocks: list[PlaceSpectrum]) -> None:
    """A bar a block, under the full width and, where the layers that read it are of low rank, theirs."""
    from matplotlib.ticker import MaxNLocator

    numbers = [p.block for p in blocks]
    axes.bar(numbers, [p.effective_rank for p in blocks], color=_COLOURS[4], edgecolor="black", label="effective rank")
    axes.axhline(blocks[0].width, color="black", label="full width")
    if blocks[0].layer_rank is not None:
        axes.axhline(blocks[0].layer_rank, color="black", linestyle="--", label="layer's rank")
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("block")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_spectra(axes: "Axes", blocks: list[PlaceSpectrum]) -> None:
    """A curve a block, darker the deeper; values of 0, which a logarithm has no place for, are left out."""
    from matplotlib import colormaps

    for i, p in enumerate(blocks):
        values = [v for v in p.singular_values if v > 0]
        colour = colormaps["viridis_r"](0.15 + 0.85 * i / max(1, len(blocks) - 1))
        dashes = _DASHES[i % len(_DASHES)]
        axes.plot(range(1, len(values) + 1), values, dashes, color=colour, label=f"block {p.block}")
    axes.set_yscale("log")
    axes.set_xlabel("index of the singular value")
