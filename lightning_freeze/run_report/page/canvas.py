"""Figures of one size and style, with axes that several charts share. Needs matplotlib (extra ``report``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lightning_freeze.pages.scales import log_norm
from lightning_freeze.pages.style import BACKGROUND, FROZEN, STYLE, TEXT, shortened
from lightning_freeze.pages.svg import as_svg
from lightning_freeze.run_report.page.view import View

WIDE = 9.6
_MOST_LABELS = 34
_SHADES = 16

#: From dark blue to yellow, so that colour-blind readers see the same order.
COLOURS: Colormap = colormaps["cividis"]
HATCH, HATCH_COLOUR = "////", "#8f8f8f"


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
        svg = as_svg(figure)
    for shade in range(_SHADES):
        svg = svg.replace(_placeholder(shade), f"var(--shade-{shade})")
    return svg


def shade_of(position: float) -> str:
    """The colour of a line. A page has lighter ones on a dark background.

    Args:
        position: Where the line stands among others, from 0 to 1.
    """
    return _placeholder(round(position * (_SHADES - 1)))


def shade_styles() -> dict[str, list[str]]:
    """The colours of lines on a light and on a dark page."""

    def colours(first: float, last: float) -> list[str]:
        return [to_hex(COLOURS(first + (last - first) * shade / (_SHADES - 1))) for shade in range(_SHADES)]

    return {"light": colours(0.0, 0.8), "dark": colours(0.35, 1.0)}


def _placeholder(shade: int) -> str:
    return f"#0a{shade:02x}f3"


def coloured(grid: Sequence[Sequence[float | None]]) -> tuple[NDArray[np.float64], LogNorm]:
    """Colours on a logarithmic scale, transparent where there is no value; 0 has the colour of the lowest one.

    Args:
        grid: The values.

    Returns:
        The colours, and the range of the values.
    """
    values = np.array([[np.nan if value is None else value for value in row] for row in grid], dtype=float)
    norm = log_norm(values[np.isfinite(values)])
    found = COLOURS(norm(np.clip(np.nan_to_num(values), norm.vmin, norm.vmax)))
    found[~np.isfinite(values)] = 0.0
    return found, norm


def draw_grid(ax: Axes, view: View, grid: Sequence[Sequence[float | None]]) -> LogNorm:
    """Draw a value of each layer by step: its colour on a logarithmic scale, hatched grey where there is none.

    Args:
        ax: The axes.
        view: The run.
        grid: For each layer that is shown, values at equal distances between the steps.

    Returns:
        The range of the values.
    """
    colours, norm = coloured(grid)
    rows = len(grid)
    everywhere = Rectangle((view.begin, -0.5), view.end - view.begin, rows, linewidth=0)
    everywhere.set(facecolor=FROZEN, edgecolor=HATCH_COLOUR, hatch=HATCH)
    ax.add_patch(everywhere)
    extent = (view.begin, view.end, -0.5, rows - 0.5)
    ax.imshow(colours, extent=extent, origin="lower", aspect="auto", interpolation="none", zorder=2)
    layer_gaps(ax, rows)
    return norm


def layer_gaps(ax: Axes, count: int) -> None:
    """Draw gaps between the rows of layers."""
    for row in range(1, count):
        ax.axhline(row - 0.5, color=BACKGROUND, linewidth=1.5 if count < 40 else 0.5, zorder=3)


def step_axis(ax: Axes, view: View, label: str = "step") -> None:
    """Let the x axis show the steps of the run, with a line where each phase begins."""
    ax.set_xlim(view.begin, view.end)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    ax.set_xlabel(label)
    for phase in view.phases[1:]:
        ax.axvline(phase.step, color=TEXT, linewidth=0.7, alpha=0.55)


def layer_axis(ax: Axes, names: Sequence[str]) -> None:
    """Let the y axis show layers, from the input up."""
    every = -(-len(names) // _MOST_LABELS)
    rows = range(0, len(names), every)
    ax.set_yticks(rows, [shortened(names[row], 18) for row in rows])
    ax.set_ylim(-0.5, len(names) - 0.5)


def phase_axis(ax: Axes, view: View, more: Sequence[str] = ()) -> None:
    """Let the y axis show phases, from the first one down.

    Args:
        ax: The axes.
        view: The run.
        more: Labels of further rows below.
    """
    labels = [f"phase {position}" for position in range(1, len(view.phases) + 1)]
    every = -(-len(labels) // 30)
    labels = [label if row % every == 0 else "" for row, label in enumerate(labels)]
    ax.set_yticks(range(len(labels) + len(more)), [*labels, *more])
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
    ax.invert_yaxis()


def legend_above(ax: Axes, columns: int = 5, **options: Any) -> None:
    """Put a legend above the axes."""
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, ncols=columns, fontsize=9, **options)


def layers_height(count: int, least: float = 1.0) -> float:
    """The height of axes with one row for each layer, in inches."""
    return max(least, min(0.22 * count, 7.5))
