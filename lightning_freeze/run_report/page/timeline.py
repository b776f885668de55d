"""When which layer trained and at which rate, below the validation metric."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

from lightning_freeze.layers.wording import count
from lightning_freeze.pages.scales import log_colorbar
from lightning_freeze.pages.style import BLUE, FROZEN, ORANGE, TEXT, VERMILION
from lightning_freeze.run_report.page.canvas import (
    COLOURS,
    HATCH,
    HATCH_COLOUR,
    WIDE,
    draw_grid,
    layer_axis,
    layers_height,
    legend_above,
    step_axis,
)
from lightning_freeze.run_report.page.chart import Chart, Table
from lightning_freeze.run_report.page.view import View, number

_COLUMNS = 600


def timeline_chart(view: View) -> Chart:
    """The chart."""
    shows_metric = view.metric is not None and bool(view.curve(view.metric))
    above = 1.9 if shows_metric else 0.0
    below = layers_height(len(view.names))

    def draw(figure: Figure) -> None:
        if shows_metric:
            curve, layers = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [above, below + 0.2]})
            _draw_metric(curve, view)
        else:
            layers = figure.subplots()
        _draw_layers(layers, view)
        handle = Patch(facecolor=FROZEN, edgecolor=HATCH_COLOUR, hatch=HATCH, linewidth=0, label="frozen")
        if shows_metric:
            # In the line of the axis label, below the numbers of the steps, however few layers there are.
            under = layers.transAxes + ScaledTranslation(0, -16 / 72, figure.dpi_scale_trans)
            place = {"loc": "upper right", "bbox_to_anchor": (1.0, 0.0), "bbox_transform": under}
            layers.legend(handles=[handle], frameon=False, fontsize=9, borderaxespad=0, **place)
        else:
            legend_above(layers, handles=[handle])
        _number_phases(curve if shows_metric else layers, view)

    note = "Hatched grey is frozen; a layer that trains has the colour of its learning rate, all factors included."
    if view.phases[1:]:
        note += " A line marks the beginning of each phase, whose number stands above."
    return Chart("timeline", "When which layer trained", note, draw, _table(view), above + below + 0.9, WIDE)


def _draw_metric(ax: Axes, view: View) -> None:
    assert view.metric is not None
    name = view.metric
    curve = view.curve(name)
    if "loss" in name.lower():
        losses = [(sample.step, sample.loss) for sample in view.samples if sample.loss is not None]
        if losses:
            label = "training loss of single batches"
            ax.plot(*zip(*losses, strict=True), color=ORANGE, linewidth=1, label=label)
    # Points at the end of the axis are shown whole.
    ax.plot(*zip(*curve, strict=True), color=BLUE, marker="o", markersize=4, linewidth=1.6, label=name, clip_on=False)
    best = view.history.best.get(name)
    if best is not None:
        star: dict[str, Any] = {"color": VERMILION, "marker": "*", "markersize": 12, "linestyle": "", "clip_on": False}
        ax.plot([best.step], [best.metrics[name]], label="best", **star)
    ax.set_ylabel(name if len(name) <= 22 else "metric")
    step_axis(ax, view, "")
    ax.tick_params(labelbottom=False)
    legend_above(ax)


def _draw_layers(ax: Axes, view: View) -> None:
    norm = draw_grid(ax, view, view.grid(lambda sample: sample.rates, _COLUMNS))
    step_axis(ax, view)
    layer_axis(ax, view.names)
    log_colorbar(ax, norm, COLOURS, "learning rate")


def _number_phases(ax: Axes, view: View) -> None:
    if len(view.phases) < 2:
        return
    shift = (view.end - view.begin) * 0.004
    least = (view.end - view.begin) * 0.02
    last = -least
    for position, phase in enumerate(view.phases, start=1):
        if phase.step - last >= least:  # numbers that would cover each other are left out
            ax.text(
                phase.step + shift,
                0.985,
                str(position),
                transform=ax.get_xaxis_transform(),
                va="top",
                fontsize=9,
                color=TEXT,
            )
            last = phase.step


def _table(view: View) -> Table:
    metric = [view.metric] if view.metric is not None else []
    columns = [
        "phase",
        "trains",
        "first step",
        "steps",
        "epoch",
        "trainable parameters",
        "highest rate",
        *(f"best {m}" for m in metric),
    ]
    rows = []
    for position, phase in enumerate(view.phases, start=1):
        rates = [r for s in view.samples if phase.step <= s.step < phase.end for r in s.rates if r is not None]
        best = [number(view.best_in_phase(position), 4)] if metric else []
        rows.append(
            [
                str(position),
                view.trains(phase),
                str(phase.step),
                str(phase.end - phase.step),
                str(phase.epoch),
                count(sum(phase.trainable)),
                number(max(rates, default=None)),
                *best,
            ]
        )
    return Table(columns, rows, (1,))
