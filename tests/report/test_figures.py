"""Stacked bars: lengths and places, and parts that differ from each other without colour."""

import pytest

from colakit.report.figures import draw_bars

BARS = {"a": {"x": 3.0, "y": 1.5}, "b": {"x": 2.0, "absent": 0.0, "z": 4.0}}


def test_parts_stand_one_behind_the_other() -> None:
    axes = draw_bars("Title", "apples", BARS).axes[0]
    # A container a part, a rectangle a bar: left edge and width.
    drawn = {str(c.get_label()): [(r.get_x(), r.get_width()) for r in c] for c in axes.containers}
    assert drawn == {"x": [(0.0, 3.0), (0.0, 2.0)], "y": [(3.0, 1.5), (2.0, 0.0)], "z": [(4.5, 0.0), (2.0, 4.0)]}
    assert (axes.get_xlabel(), axes.get_title(loc="left")) == ("apples", "Title")


def test_every_part_has_its_own_look() -> None:
    """More parts than colours or hatches: their pairs differ."""
    axes = draw_bars("", "", {"a": {str(i): 1.0 for i in range(20)}}).axes[0]
    looks = {(r.get_facecolor(), r.get_hatch()) for r in axes.patches}  # type: ignore[attr-defined]
    assert len(looks) == 20


@pytest.mark.parametrize("n", [1, 9])
def test_the_figure_grows_with_its_bars(n: int) -> None:
    height = draw_bars("", "", {str(i): {"x": 1.0} for i in range(n)}).get_figheight()
    assert height == pytest.approx(1.8 + 0.45 * n)
