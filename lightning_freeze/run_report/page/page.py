"""The page of a run: self-contained HTML without scripts, light and dark."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from lightning_freeze.pages.rendering import render_page
from lightning_freeze.run_report.facts import RunFacts
from lightning_freeze.run_report.history.history import History
from lightning_freeze.run_report.page.by_phase import backward_chart, memory_chart, time_chart
from lightning_freeze.run_report.page.by_step import (
    cache_chart,
    distances_chart,
    gradients_chart,
    rates_chart,
    relative_gradients_chart,
)
from lightning_freeze.run_report.page.summary import changes, headline, sentences
from lightning_freeze.run_report.page.timeline import timeline_chart
from lightning_freeze.run_report.page.view import Chart, View
from lightning_freeze.run_report.plan_file import PlannedNumbers

#: The most bytes of a page, so that it can be sent by mail.
_LARGEST = 1_400_000
_CHARTS: tuple[Callable[[View], Chart | None], ...] = (
    rates_chart,
    distances_chart,
    time_chart,
    memory_chart,
    backward_chart,
    cache_chart,
    gradients_chart,
    relative_gradients_chart,
)


def report_page(history: History, facts: RunFacts, plan: Sequence[PlannedNumbers] | None = None) -> str:
    """The page.

    Args:
        history: What happened.
        facts: What else there is to say about the run.
        plan: The phases of a plan to compare the run with, if there is one.
    """
    view = View(history, facts, plan)
    charts = [chart for make in _CHARTS if (chart := make(view)) is not None] if view.samples else []
    values = {
        "headline": headline(view),
        "sentences": sentences(view),
        "changes": changes(view),
        "charts": [timeline_chart(view), *charts] if view.samples else [],
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
