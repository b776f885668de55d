"""Figures of one size and style, with axes that several charts share. Needs matplotlib (extra ``report``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_freeze.pages.style import STYLE, TEXT, shortened
from lightning_freeze.pages.svg import as_svg
from lightning_freeze.run_report.page.view import View

WIDE, HALF = 9.6, 5.6
_MOST_LABELS = 34

#: From dark blue to yellow, so that colour-blind readers see the same order.
COLOURS: Colormap = colormaps["cividis"]


def svg_of(width: float, height: float, draw: Callable[[Figure], None]) -> str:
    """Draw a figure.

    Args:
        width: Its width in inches.
        height: Its height in inches.
        draw: Draws into the figure.

    Returns:
        An SVG element.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        return as_svg(figure)


def step_axis(ax: Axes, view: View, label: str = "step") -> None:
    """Let the x axis show the steps of the run, with a line where each phase begins."""
    ax.set_xlim(view.begin, view.end)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    ax.set_xlabel(label)
    for phase in view.phases[1:]:
        ax.axvline(phase.step, color=TEXT, linewidth=0.7, alpha=0.55)


def layer_axis(ax: Axes, names: Sequence[str]) -> None:
    """Let the y axis show layers, from the input up."""
    every = -(-len(names) // _MOST_LABELS)
    rows = range(0, len(names), every)
    ax.set_yticks(rows, [shortened(names[row], 18) for row in rows])
    ax.set_ylim(-0.5, len(names) - 0.5)


def legend_above(ax: Axes, columns: int = 5, **options: Any) -> None:
    """Put a legend above the axes."""
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, ncols=columns, fontsize=9, **options)


def layers_height(count: int, least: float = 1.0) -> float:
    """The height of axes with one row for each layer, in inches."""
    return max(least, min(0.22 * count, 7.5))
