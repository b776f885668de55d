"""The pictures of advice: what each depth knows, what each layer wants to change, and the race.

Needs the extra ``report`` (matplotlib).
"""

from __future__ import annotations

import math

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_freeze.advice.records import AdviceRecord
from lightning_freeze.pages.scales import plain_log_ticks
from lightning_freeze.pages.style import BLUE, GREEN, GREY, ORANGE, SKY_BLUE, STYLE, TEXT, VERMILION, shortened

_WIDTH = 9.0


def figures_of(advice: AdviceRecord) -> dict[str, Figure]:
    """The figures by title: those of layers only if something was measured.

    Args:
        advice: The advice.
    """
    found = {"Quality": _drawn(advice, _quality, 1, 1.1 + 0.34 * len(advice.results))}
    if advice.measurements.depths:
        found["What each depth knows"] = _drawn(advice, _depths, 2, 3.2)
    if advice.measurements.layers:
        found["What each layer wants to change"] = _drawn(advice, _gradients, 2, 3.2)
    return found


def _drawn(advice: AdviceRecord, draw: object, columns: int, height: float) -> Figure:
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        draw(advice, *axes)  # type: ignore[operator]
    return figure


def _quality(advice: AdviceRecord, ax: Axes) -> None:
    shares = sorted({run.share for result in advice.results for run in result.rounds})
    colours = dict(zip(shares, (SKY_BLUE, ORANGE, GREEN, GREY), strict=False))
    for row, result in enumerate(advice.results):
        for run in result.rounds:
            if math.isfinite(run.score):
                ax.plot(run.score, row, "o", color=colours.get(run.share, GREY), markersize=5)
        colour = VERMILION if result.name == advice.recommended else BLUE
        known = [score for score in result.scores if math.isfinite(score)]
        ax.plot(known, [row] * len(known), "D", color=colour, markersize=7)
        if known:
            ax.plot([min(known), max(known)], [row, row], "-", color=colour, linewidth=2)
    for share, colour in colours.items():
        ax.plot([], [], "o", color=colour, label=f"{share:.0%} of a run", markersize=5)
    ax.plot([], [], "D", color=BLUE, label="whole run")
    ax.plot([], [], "D", color=VERMILION, label="recommended")
    ax.set_yticks(range(len(advice.results)), [shortened(result.name) for result in advice.results])
    ax.set_ylim(len(advice.results) - 0.5, -0.5)
    ax.set_xlabel(advice.monitor)
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, ncols=6, fontsize=9)


def _depths(advice: AdviceRecord, left: Axes, right: Axes) -> None:
    depths = advice.measurements.depths
    places = range(len(depths))
    means, errors = [d.probe.mean for d in depths], [d.probe.error for d in depths]
    left.errorbar(places, means, yerr=errors, marker="o", color=BLUE, capsize=3)
    left.axhline(advice.measurements.baseline, color=TEXT, linestyle="--", linewidth=0.8)
    _title(left, "linear probe (dashed: constant guess)")
    right.plot(places, [d.log_me for d in depths], "o-", color=GREEN)
    _title(right, "LogME")
    for ax in (left, right):
        _name_places(ax, [depth.name for depth in depths])


def _gradients(advice: AdviceRecord, left: Axes, right: Axes) -> None:
    layers = advice.measurements.layers
    for ax, values, label, colour in (
        (left, [each.relative_norm for each in layers.values()], "gradient norm / weight norm", ORANGE),
        (right, [each.fisher_trace for each in layers.values()], "trace of the Fisher information", SKY_BLUE),
    ):
        shown = [value if math.isfinite(value) and value > 0 else float("nan") for value in values]
        ax.plot(range(len(shown)), shown, "o-", color=colour)
        if any(math.isfinite(value) for value in shown):
            ax.set_yscale("log")
            plain_log_ticks(ax.yaxis)
        _title(ax, label)
        _name_places(ax, list(layers))


def _title(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", fontsize=10, color=TEXT)


def _name_places(ax: Axes, names: list[str]) -> None:
    every = max(1, -(-len(names) // 14))
    ax.set_xticks(range(0, len(names), every), [shortened(name, 12) for name in names[::every]], rotation=45)
