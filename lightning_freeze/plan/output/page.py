"""A plan as one self-contained HTML page: no network, no script, light and dark."""

from __future__ import annotations

from typing import Any

from lightning_freeze.cache.store.sizes import show_size
from lightning_freeze.layers.wording import count, spans
from lightning_freeze.pages.rendering import render_page
from lightning_freeze.pages.svg import as_svg
from lightning_freeze.plan.output.figures import draw_figure, pictures_of
from lightning_freeze.plan.output.table import batches_text, rates_text, summary_lines
from lightning_freeze.plan.records import PlanRecord


def plan_page(plan: PlanRecord) -> str:
    """The page.

    Args:
        plan: The plan.
    """
    drawn = {p.title: as_svg(draw_figure(plan, [p], titles=False)) for p in pictures_of(plan)}
    names = [layer.name for layer in plan.phases[0].layers]
    return render_page(
        "lightning_freeze.plan.output",
        "plan.html.jinja",
        figures=drawn,
        plan=plan,
        headline=_headline(plan),
        lines=summary_lines(plan),
        phases=plan.phases,
        names=names,
        count=count,
        size=show_size,
        batches=batches_text,
        rates=rates_text,
        trains=lambda phase: spans(phase.trains, names),
    )


def _headline(plan: PlanRecord) -> list[dict[str, Any]]:
    total, cached, peak = plan.total_time(), plan.total_time(cached=True), plan.peak()
    cards = [{"label": "phases", "value": str(len(plan.phases))}]
    cards.append({"label": "training batches", "value": "?" if plan.batches is None else f"{plan.batches:,}"})
    if total is not None and cached is not None:
        cards.append({"label": "of the time of full fine-tuning", "value": f"{total:.0%}"})
        if cached < total:
            cards.append({"label": "with FrozenPrefixCache", "value": f"{cached:.0%}"})
    if peak is not None and plan.full is not None:
        cards.append(
            {"label": f"at most; full fine-tuning {show_size(plan.full.total)}", "value": show_size(peak.total)}
        )
    return cards
