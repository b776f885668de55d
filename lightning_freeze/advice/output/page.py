"""Advice as one self-contained HTML page: no network, no script, light and dark."""

from __future__ import annotations

from typing import Any

from lightning_freeze.advice.output.config_text import config_text
from lightning_freeze.advice.output.figures import figures_of
from lightning_freeze.advice.output.sentences import quality, sentences
from lightning_freeze.advice.output.text import cells, layer_rows
from lightning_freeze.advice.records import AdviceRecord
from lightning_freeze.cache.store.sizes import show_size
from lightning_freeze.pages.rendering import render_page
from lightning_freeze.pages.svg import as_svg


def advice_page(advice: AdviceRecord) -> str:
    """The page.

    Args:
        advice: The advice.
    """
    return render_page(
        "lightning_freeze.advice.output",
        "advice.html.jinja",
        advice=advice,
        cells=cells,
        config=config_text(advice).rstrip(),
        figures={title: as_svg(figure) for title, figure in figures_of(advice).items()},
        headline=_headline(advice),
        lines=sentences(advice),
        rows=layer_rows(advice),
    )


def _headline(advice: AdviceRecord) -> list[dict[str, Any]]:
    best, full = advice.best, advice.full
    cards = [
        {"label": "recommended", "value": best.name},
        {"label": f"{advice.monitor}; full fine-tuning {quality(full)}", "value": quality(best)},
    ]
    if best.relative_time is not None:
        cards.append({"label": "of the time of full fine-tuning", "value": f"{best.relative_time:.0%}"})
    if best.peak_bytes is not None and full.peak_bytes is not None:
        label = f"at most; full fine-tuning {show_size(full.peak_bytes)}"
        cards.append({"label": label, "value": show_size(best.peak_bytes)})
    if advice.difference is not None:
        label = "of bootstrap draws: at least as good as full fine-tuning"
        cards.append({"label": label, "value": f"{advice.difference.positive:.0%}"})
    return cards
