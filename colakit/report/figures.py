"""Figures: stacked bars that stay readable in grey print and for colour-blind readers."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from colakit.errors import FigureError
from colakit.report.tables import print_note, stderr_console

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".svg", ".png")

# Okabe and Ito's colours, which differ in lightness too, and hatches for where there is no colour at all.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
_HATCHES = ("", "//", "..", "\\\\", "xx", "--", "oo", "++")


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
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
    try:
        draw_bars(title, unit, bars).savefig(path, dpi=200, metadata=metadata)
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
