"""Logarithmic scales whose ticks are plain numbers. Needs matplotlib (extra ``report``)."""

from __future__ import annotations

from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, LogNorm
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter


def log_norm(values: Iterable[float]) -> LogNorm:
    """A logarithmic range that holds some positive numbers, and is never empty.

    Args:
        values: The numbers; those that are not positive are passed over.
    """
    positive = [value for value in values if value > 0]
    lowest, highest = (min(positive), max(positive)) if positive else (1.0, 1.0)
    return LogNorm(lowest, highest if highest > lowest * 1.0001 else lowest * 1.0001)


def plain_log_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with numbers such as 0.001, and one that spans little with several of them."""
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1.0,) if low > 0 and high / low >= 100 else (1.0, 2.0, 5.0), numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_formatter(NullFormatter())


def log_colorbar(axes: Axes | list[Axes], norm: LogNorm, colours: Colormap, label: str) -> Colorbar:
    """A bar that explains the colours of a figure.

    Args:
        axes: What it stands beside.
        norm: The range.
        colours: The colours.
        label: What they show.
    """
    first = axes[0] if isinstance(axes, list) else axes
    bar = first.figure.colorbar(ScalarMappable(norm, colours), ax=axes, label=label, pad=0.01)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)  # one picture instead of 256 shapes
    plain_log_ticks(bar.ax.yaxis)
    return bar
