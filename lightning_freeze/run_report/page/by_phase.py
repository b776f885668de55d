"""Charts of numbers of each phase: time, and where backward stops."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lightning_freeze.layers.wording import count, spans
from lightning_freeze.pages.style import BLUE, FROZEN, ORANGE, TEXT
from lightning_freeze.run_report.history.records import PhaseRecord
from lightning_freeze.run_report.page.canvas import (
    HATCH,
    HATCH_COLOUR,
    layer_axis,
    layer_gaps,
    layers_height,
    legend_above,
    phase_axis,
)
from lightning_freeze.run_report.page.chart import Chart, Table
from lightning_freeze.run_report.page.view import View, number, seconds_text


def time_chart(view: View) -> Chart | None:
    """Time of a training batch in each phase; none before two batches of a phase have ended."""
    times = [phase.batch_seconds for phase in view.phases]
    known = [time for time in times if time is not None]
    if not known:
        return None
    planned = _planned_seconds(view)
    longest = max([*known, *(time for time in planned if time)])
    unit = 1000 if longest < 1 else 1

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        offset = 0.2 if any(planned) else 0.0
        _bars(ax, [unit * (time or 0.0) for time in times], -offset, BLUE, "measured", bool(offset))
        if offset:
            _bars(ax, [unit * (time or 0.0) for time in planned], offset, ORANGE, "planned", True)
            legend_above(ax)
        phase_axis(ax, view)
        ax.set_xlabel("milliseconds in a training batch" if unit == 1000 else "seconds in a training batch")
        ax.set_xlim(0, 1.18 * unit * longest)

    slowest = max(known)
    note = "From the start of a batch to its end, without loading data and without validation."
    columns = ["phase", "trainable parameters", "batches", "time of a batch", "relative to the slowest phase"]
    rows = []
    for position, (phase, time) in enumerate(zip(view.phases, times, strict=True), start=1):
        share = None if time is None else time / slowest
        rows.append([str(position), _trainable(phase), str(phase.batches), seconds_text(time), number(share, 2)])
    if any(planned):
        note += " The plan knows only ratios, so it is scaled to the measured time of the run."
        columns += ["planned", "planned, relative to full fine-tuning"]
        for row, seconds, plan in zip(rows, planned, view.planned, strict=True):
            row += [seconds_text(seconds), number(None if plan is None else plan.time, 2)]
    height = 1.0 + (0.42 if any(planned) else 0.3) * max(2, len(times))
    return Chart("time", "Time of a training batch", note, draw, Table(columns, rows), height)


def backward_chart(view: View) -> Chart | None:
    """Where backward stops in each phase; none before the first batch."""
    if not view.phases:
        return None
    kinds = {
        "trains": (BLUE, "", TEXT),
        "frozen, backward runs through": (ORANGE, "xxx", TEXT),
        "frozen, not reached": (FROZEN, HATCH, HATCH_COLOUR),
    }
    names = list(kinds)

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for column, phase in enumerate(view.phases, start=1):
            shown = [0 if phase.trainable[i] else 1 if i in phase.passes else 2 for i in view.shown]
            row = 0
            for kind, run in groupby(shown):
                length = len(list(run))
                colour, hatch, edge = kinds[names[kind]]
                style: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": edge, "linewidth": 0}
                ax.bar(column, length, bottom=row - 0.5, width=0.9, **style)
                row += length
        layer_gaps(ax, len(view.names))
        layer_axis(ax, view.names)
        every = -(-len(view.phases) // 16)
        ax.set_xticks(range(1, len(view.phases) + 1, every))
        ax.set_xlim(0.4, len(view.phases) + 0.6)
        ax.set_xlabel("phase")
        handles = [Patch(facecolor=c, hatch=h, edgecolor=e, linewidth=0, label=n) for n, (c, h, e) in kinds.items()]
        legend_above(ax, 2, handles=handles)

    note = "Backward saves time only in the layers that it does not reach."
    if not all(phase.passes_certain for phase in view.phases):
        note += " Some of it follows from the order of the layers and may differ in this model."
    rows = []
    for position, phase in enumerate(view.phases, start=1):
        passed = [view.history.layers[index] for index in phase.passes]
        rows.append(
            [str(position), view.trains(phase), spans(passed, view.history.layers) or "none", _lowest(view, phase)]
        )
    columns = ["phase", "trains", "frozen layers that backward runs through", "lowest layer with a gradient"]
    height = 1.1 + layers_height(len(view.names), 2.0)
    return Chart("backward", "Where backward stops", note, draw, Table(columns, rows, (1, 2, 3)), height)


def _lowest(view: View, phase: PhaseRecord) -> str:
    return "-" if phase.lowest is None else view.history.layers[phase.lowest]


def _planned_seconds(view: View) -> list[float | None]:
    """The planned time of a batch in each phase, scaled so that all phases together take as long as they did."""
    pairs = [
        (phase.seconds, phase.timed * plan.time)
        for phase, plan in zip(view.phases, view.planned, strict=True)
        if plan is not None and plan.time is not None and phase.timed
    ]
    units = sum(planned for _, planned in pairs)
    if not units:
        return [None] * len(view.phases)
    scale = sum(seconds for seconds, _ in pairs) / units
    return [None if plan is None or plan.time is None else plan.time * scale for plan in view.planned]


def _bars(ax: Axes, values: Sequence[float], offset: float, colour: str, label: str, is_thin: bool) -> None:
    rows = [row + offset for row in range(len(values))]
    bars = ax.barh(rows, values, height=0.36 if is_thin else 0.66, color=colour, label=label)
    texts = [f"{value:.3g}" if value else "" for value in values]
    ax.bar_label(bars, texts, padding=3, fontsize=8, color=TEXT)


def _trainable(phase: PhaseRecord) -> str:
    return count(sum(phase.trainable))
