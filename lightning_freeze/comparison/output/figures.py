"""The figures of a comparison: quality against time, and the seeds of each plan. Needs matplotlib."""

from __future__ import annotations

import math
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from lightning_freeze.comparison.comparison_record import ComparisonRecord
from lightning_freeze.comparison.plan_summary import PlanSummary
from lightning_freeze.comparison.statistics import mean_of
from lightning_freeze.pages.style import BACKGROUND, BLUE, GREY, ORANGE, STYLE, TEXT, shortened

_WIDTH = 9.0


class _Point(NamedTuple):
    plan: PlanSummary
    seconds: float
    mean: float
    spread: float


def pareto_figure(comparison: ComparisonRecord) -> Figure:
    """Quality against time: one point for each plan, a line through those that no other plan beats in both.

    Args:
        comparison: The comparison.
    """
    known = [
        _Point(plan, plan.seconds, plan.mean, plan.spread if plan.spread is not None else 0.0)
        for plan in comparison.plans
        if plan.seconds is not None and plan.mean is not None and math.isfinite(plan.mean)
    ]
    front = sorted((point for point in known if point.plan.is_pareto), key=lambda point: point.seconds)
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 4.2), layout="constrained")
        ax = figure.subplots()
        ax.plot([p.seconds for p in front], [p.mean for p in front], color=BLUE, linewidth=1, linestyle="--", zorder=1)
        for plan, seconds, mean, spread in known:
            colour = BLUE if plan.is_pareto else GREY
            ax.errorbar(seconds, mean, yerr=spread, fmt="o", color=colour, capsize=3, markersize=7, zorder=2)
            text = shortened(plan.name)
            ax.annotate(text, (seconds, mean), xytext=(7, 6), textcoords="offset points", fontsize=9, color=TEXT)
        ax.margins(x=0.15, y=0.15)
        ax.set_xlim(left=max(0.0, ax.get_xlim()[0]))
        if comparison.mode == "min":
            ax.invert_yaxis()
        ax.set_xlabel("mean wall time of a fit, seconds")
        ax.set_ylabel(comparison.metric + (", smaller is better" if comparison.mode == "min" else ""))
    return figure


def seeds_figure(comparison: ComparisonRecord) -> Figure:
    """The metric of each plan with each seed; a line joins the fits of one seed, which the test pairs.

    Args:
        comparison: The comparison.
    """
    plans = [plan for plan in comparison.plans if plan.values]
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 1.1 + 0.42 * len(plans)), layout="constrained")
        ax = figure.subplots()
        for seed in comparison.seeds:
            rows = [row for row, plan in enumerate(plans) if seed in plan.values]
            ax.plot([plans[row].values[seed] for row in rows], rows, color=GREY, linewidth=0.7, alpha=0.6, zorder=1)
        for row, plan in enumerate(plans):
            values = list(plan.values.values())
            ax.plot(values, [row] * len(values), "o", color=BLUE, markersize=5, markeredgecolor=BACKGROUND, zorder=2)
            ax.plot(mean_of(values), row, "|", color=ORANGE, markersize=18, markeredgewidth=3, zorder=3)
        ax.set_yticks(range(len(plans)), [shortened(plan.name) for plan in plans])
        ax.set_ylim(len(plans) - 0.5, -0.5)
        ax.set_xlabel(f"{comparison.metric}: each seed, and the mean")
    return figure
