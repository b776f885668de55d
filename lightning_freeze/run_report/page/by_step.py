"""Charts of numbers of each layer by step: learning rates, distances, norms of gradients, and cache hits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_freeze.layers.wording import span
from lightning_freeze.pages.scales import log_colorbar, plain_log_ticks
from lightning_freeze.pages.style import BLUE, shortened
from lightning_freeze.run_report.history.records import Sample
from lightning_freeze.run_report.page.canvas import (
    COLOURS,
    draw_grid,
    layer_axis,
    layers_height,
    shade_of,
    step_axis,
)
from lightning_freeze.run_report.page.chart import Chart, Table
from lightning_freeze.run_report.page.view import View, number

_COLUMNS = 300
_MOST_ENTRIES = 12
Values = Callable[[Sample], Sequence[float | None]]


def rates_chart(view: View) -> Chart | None:
    """Learning rates; none if nothing was measured."""
    series = _series(view, lambda sample: sample.rates)
    if not series:
        return None

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for names, index, values in series:
            found = [value if value else np.nan for value in values]
            ax.plot(_steps(view), [*found, found[-1]], color=_colour(view, index), label=_label(names))
        step_axis(ax, view)
        if any(value for _, _, values in series for value in values):
            ax.set_yscale("log")
            plain_log_ticks(ax.yaxis)
        ax.set_ylabel("learning rate")
        _legend(ax)

    note = "The highest rate within each layer, as the optimizer applies it. Layers with the same rates share a line."
    return Chart("rates", "Learning rates", note, draw, _table(view, lambda s: s.rates, "frozen"), 3.2)


def distances_chart(view: View) -> Chart | None:
    """Distances from the starting weights; none if nothing was measured."""
    if view.history.distances is None:
        return None
    final = view.history.distances

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for name, index in _top_down(view):
            values = [sample.distances[index] for sample in view.samples] + [final[index]]
            ax.plot(_steps(view), [np.nan if v is None else v for v in values], color=_colour(view, index), label=name)
        step_axis(ax, view)
        ax.set_ylim(bottom=0)
        ax.set_ylabel("relative L2 distance")
        _legend(ax)

    note = "How far each layer has moved from its weights at the start, relative to their norm."
    table = _table(view, lambda sample: sample.distances, "-", ("now", final))
    return Chart("distances", "Distance from the starting weights", note, draw, table, 3.2)


def gradients_chart(view: View) -> Chart | None:
    """Norms of the gradients; none if no gradient was seen."""
    note = "L2 norm of the gradient of each layer before clipping. Hatched where it had none."
    return _heatmap(view, "gradients", "Gradient norm", note, lambda sample: sample.gradients)


def relative_gradients_chart(view: View) -> Chart | None:
    """Norms of the gradients relative to those of the weights; none if no gradient was seen."""
    note = "The same divided by the norm of the layer's weights, so that layers of different size can be compared."
    return _heatmap(
        view, "relative-gradients", "Relative gradient norm", note, lambda sample: sample.relative_gradients
    )


def cache_chart(view: View) -> Chart | None:
    """Cache hits; none without a FrozenPrefixCache."""
    found = [(sample.step, sample.hit_rate) for sample in view.samples if sample.hit_rate is not None]
    if view.facts.hit_rate is None or not found:
        return None
    found.append((view.end, view.facts.hit_rate))

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ax.plot(*zip(*found, strict=True), color=BLUE, marker="o", markersize=3)
        step_axis(ax, view)
        ax.set_ylim(0, 1.02)
        ax.set_ylabel("share of samples read")

    note = "Share of the samples so far whose hidden states FrozenPrefixCache read instead of computing them."
    shown = [sample for sample in view.some_samples(12) if sample.hit_rate is not None]
    rows = [[str(sample.step), f"{sample.hit_rate:.3f}"] for sample in shown]
    table = Table(["step", "share read"], [*rows, ["now", f"{view.facts.hit_rate:.3f}"]])
    return Chart("cache", "Cache hits", note, draw, table, 2.8)


def _heatmap(view: View, key: str, title: str, note: str, values: Values) -> Chart | None:
    grid = view.grid(values, _COLUMNS)
    if not any(value is not None and value > 0 and np.isfinite(value) for row in grid for value in row):
        return None

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        norm = draw_grid(ax, view, grid)
        step_axis(ax, view)
        layer_axis(ax, view.names)
        log_colorbar(ax, norm, COLOURS, title.lower())

    height = 0.8 + layers_height(len(view.names), 2.0)
    return Chart(key, title, note, draw, _table(view, values, "-"), height)


def _series(view: View, values: Values) -> list[tuple[list[str], int, list[float | None]]]:
    """Lines from the top layer down: names of neighbours with the same values, index of the first, and the values."""
    lines = [(name, index, [values(sample)[index] for sample in view.samples]) for name, index in _top_down(view)]
    found = []
    for cells, run in groupby(lines, key=lambda line: line[2]):
        group = list(run)
        if any(value is not None for value in cells):
            found.append(([name for name, _, _ in reversed(group)], group[0][1], cells))
    return found


def _top_down(view: View) -> list[tuple[str, int]]:
    return list(reversed(list(zip(view.names, view.shown, strict=True))))


def _steps(view: View) -> list[int]:
    return [*(sample.step for sample in view.samples), view.end]


def _colour(view: View, index: int) -> str:
    return shade_of(index / max(1, len(view.history.layers) - 1))


def _label(names: Sequence[str]) -> str:
    return span([shortened(name, 18) for name in names])


def _legend(ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    every = -(-len(handles) // _MOST_ENTRIES)
    labels = [shortened(label, 20) for label in labels]
    ax.legend(
        handles[::every], labels[::every], loc="upper left", bbox_to_anchor=(1.0, 1.02), frameon=False, fontsize=8
    )


def _table(view: View, values: Values, missing: str, last: tuple[str, Sequence[float | None]] | None = None) -> Table:
    samples = view.some_samples()
    columns = ["layer", *(f"step {sample.step}" for sample in samples), *([last[0]] if last else [])]
    rows = []
    for name, index in zip(view.names, view.shown, strict=True):
        cells = [values(sample)[index] for sample in samples] + ([last[1][index]] if last else [])
        rows.append([name, *(missing if cell is None else number(cell) for cell in cells)])
    return Table(columns, rows)
