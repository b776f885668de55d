"""The figure of an experiment, ``results.svg``, from its ``results.csv``."""

from __future__ import annotations

import statistics
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results import Results, read_results, write_atomically

from lightning_freeze.pages.style import BACKGROUND, BLUE, GREEN, GREY, ORANGE, SKY_BLUE, STYLE, VERMILION, shortened
from lightning_freeze.pages.svg import as_svg

#: More comparisons than this are drawn as lines from one to the next.
_PANELS = 5
_MARKERS, _DASHES = "os^Dv<>Ph*", ("-", "--", ":", "-.")
_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, SKY_BLUE, GREY)


def write_figure(folder: Path) -> None:
    """Draw the results of a folder."""
    results = read_results(folder / "results.csv")
    svg = as_svg(figure_of(results), text="#222222", background="#ffffff")
    # A page of its own needs a background: the text would vanish on a dark one.
    start = svg.index(">") + 1
    write_atomically(
        folder / "results.svg", svg[:start] + '<rect width="100%" height="100%" fill="#ffffff"/>' + svg[start:]
    )


def figure_of(results: Results) -> Figure:
    """The seeds and the mean of each plan; of many comparisons the means alone, as lines."""
    with rc_context(STYLE):
        return _lines(results) if len(results.origins) > _PANELS else _panels(results)


def _panels(results: Results) -> Figure:
    count = len(results.origins)
    most = max(len(results.plans(name)) for name in results.origins)
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(5.5, 3.4 * columns), (0.9 + 0.34 * most) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax, name in zip(axes.flat, results.origins, strict=False):
        _seeds(ax, results, name)
    for ax in axes.flat[count:]:
        ax.set_visible(False)
    return figure


def _seeds(ax: Axes, results: Results, name: str) -> None:
    """One row for each plan: a point for each seed, a bar at the mean; a line joins the fits of a seed."""
    origin, plans = results.origins[name], results.plans(name)
    values = [results.values(name, plan, origin.metric) for plan in plans]
    for seed in dict.fromkeys(seed for each in values for seed in each):
        rows = [row for row, each in enumerate(values) if seed in each]
        ax.plot([values[row][seed] for row in rows], rows, color=GREY, linewidth=0.7, alpha=0.6, zorder=1)
    for row, each in enumerate(values):
        found = list(each.values())
        if not found:  # a fit may end without the metric
            continue
        ax.plot(found, [row] * len(found), "o", color=BLUE, markersize=4.5, markeredgecolor=BACKGROUND, zorder=2)
        ax.plot(statistics.fmean(found), row, "|", color=ORANGE, markersize=15, markeredgewidth=3, zorder=3)
    ax.set_yticks(range(len(plans)), [shortened(plan, 22) for plan in plans])
    ax.set_ylim(len(plans) - 0.5, -0.5)
    ax.set_xlabel(origin.metric)
    if len(results.origins) > 1:
        ax.set_title(name, fontsize=10)


def _lines(results: Results) -> Figure:
    """A line for each plan over all comparisons. Markers and dashes tell plans apart without colour."""
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    ax = figure.subplots()
    names = list(results.origins)
    for index, plan in enumerate(dict.fromkeys(fit.plan for fit in results.fits)):
        known = {name: results.values(name, plan, results.origins[name].metric) for name in names}
        places = [place for place, name in enumerate(names) if known[name]]
        means = [statistics.fmean(known[names[place]].values()) for place in places]
        spreads = [
            statistics.stdev(found) if len(found := list(known[names[place]].values())) > 1 else 0.0 for place in places
        ]
        ax.errorbar(
            places,
            means,
            yerr=spreads,
            label=shortened(plan, 22),
            marker=_MARKERS[index % len(_MARKERS)],
            linestyle=_DASHES[index % len(_DASHES)],
            color=_COLOURS[index % len(_COLOURS)],
            markersize=5,
            capsize=2,
        )
    ax.set_xticks(range(len(names)), [shortened(name, 14) for name in names])
    ax.set_ylabel(next(iter(results.origins.values())).metric)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure
