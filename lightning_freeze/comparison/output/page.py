"""A comparison as one self-contained HTML page: no network, no script, light and dark."""

from __future__ import annotations

from lightning_freeze.comparison.comparison_record import ComparisonRecord
from lightning_freeze.comparison.output.columns import (
    columns_of,
    difference_text,
    legend,
    mean_text,
    p_text,
    time_text,
    verdict,
)
from lightning_freeze.comparison.output.figures import pareto_figure, seeds_figure
from lightning_freeze.pages.rendering import render_page
from lightning_freeze.pages.svg import as_svg


def comparison_page(comparison: ComparisonRecord) -> str:
    """The page.

    Args:
        comparison: The comparison.
    """
    environments = sorted({fit.result.environment for fit in comparison.fits if fit.result is not None})
    return render_page(
        "lightning_freeze.comparison.output",
        "comparison.html.jinja",
        comparison=comparison,
        headline=_headline(comparison),
        verdict=verdict(comparison),
        legend=legend(comparison),
        columns=columns_of(comparison),
        pareto=as_svg(pareto_figure(comparison)),
        seeds=as_svg(seeds_figure(comparison)),
        environments=environments,
        difference=difference_text,
        p=p_text,
        time=time_text,
    )


def _headline(comparison: ComparisonRecord) -> list[tuple[str, str]]:
    best = comparison.best
    done = sum(fit.result is not None for fit in comparison.fits)
    cards = [
        (best.name, f"best mean {comparison.metric}"),
        (mean_text(best), comparison.metric),
        (f"{len(comparison.plans)} x {len(comparison.seeds)}", "plans x seeds"),
        (f"{done} of {len(comparison.fits)}", "fits succeeded"),
    ]
    fastest = min((plan for plan in comparison.plans if plan.seconds is not None), key=lambda plan: plan.seconds or 0.0)
    if fastest.seconds is not None:
        cards.append((time_text(fastest.seconds), f"a fit of the fastest plan, {fastest.name}"))
    return cards
