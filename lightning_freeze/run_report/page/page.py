"""The page of a run: self-contained HTML without scripts, light and dark."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from lightning_freeze.pages.rendering import render_page
from lightning_freeze.run_report.facts import RunFacts
from lightning_freeze.run_report.history.history import History
from lightning_freeze.run_report.page.by_phase import backward_chart, time_chart
from lightning_freeze.run_report.page.by_step import (
    cache_chart,
    distances_chart,
    gradients_chart,
    rates_chart,
    relative_gradients_chart,
)
from lightning_freeze.run_report.page.canvas import shade_styles
from lightning_freeze.run_report.page.chart import Chart
from lightning_freeze.run_report.page.figures import Figures
from lightning_freeze.run_report.page.memory import memory_chart
from lightning_freeze.run_report.page.summary import changes, headline, sentences
from lightning_freeze.run_report.page.timeline import timeline_chart
from lightning_freeze.run_report.page.view import View
from lightning_freeze.run_report.plan_file import PlannedNumbers

#: The most bytes of a page, so that it can be sent by mail.
_LARGEST = 1_400_000
_CHARTS: tuple[Callable[[View], Chart | None], ...] = (
    timeline_chart,
    rates_chart,
    distances_chart,
    time_chart,
    memory_chart,
    backward_chart,
    cache_chart,
    gradients_chart,
    relative_gradients_chart,
)


def report_page(
    history: History,
    facts: RunFacts,
    plan: Sequence[PlannedNumbers] | None = None,
    figures: Figures | None = None,
    is_last: bool = True,
) -> str:
    """The page.

    Args:
        history: What happened.
        facts: What else there is to say about the run.
        plan: The phases of a plan to compare the run with, if there is one.
        figures: The figures that were drawn before, which may still do.
        is_last: Whether the page is not written again, so that its figures have to be up to date.
    """
    drawn = Figures() if figures is None else figures
    view = View(history, facts, plan)
    charts = [chart for make in _CHARTS if (chart := make(view)) is not None] if view.samples else []
    svgs = drawn.of(charts, history.end, is_last)
    values = {
        "headline": headline(view),
        "sentences": sentences(view),
        "changes": changes(view),
        "charts": charts,
        "svgs": svgs,
        "drawn": None if drawn.step == history.end else drawn.step,
        "shades": shade_styles(),
        "module": facts.module,
        "history": history,
        "cache": facts.cache,
        "hidden_layers": len(history.layers) - len(view.names),
    }
    page = _render(values, json.dumps(_plain(history.state_dict()), separators=(",", ":")))
    if len(page.encode("utf-8", errors="replace")) > _LARGEST:
        page = _render(values, "")
    return page


def _render(values: dict[str, Any], data: str) -> str:
    return render_page("lightning_freeze.run_report.page", "report.html.jinja", **values, data=data)


def _plain(value: Any) -> Any:
    """Numbers with four digits, and ``None`` for those that JSON does not have."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value
