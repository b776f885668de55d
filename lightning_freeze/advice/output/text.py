"""Advice as text: a table of the plans, a table of the layers, and sentences."""

from __future__ import annotations

import math

from rich import box
from rich.table import Table

from lightning_freeze.advice.output.sentences import quality, sentences
from lightning_freeze.advice.records import AdviceRecord, CandidateResult
from lightning_freeze.cache.store.sizes import show_size
from lightning_freeze.layers.wording import percent, render

_WIDTH = 120


def advice_text(advice: AdviceRecord) -> str:
    """The advice as text.

    Args:
        advice: The advice.
    """
    parts = [render(_plans(advice), _WIDTH)]
    if advice.measurements.depths or advice.measurements.layers:
        parts.append(render(_layers(advice), _WIDTH))
    return "\n".join([*parts, "", *sentences(advice), *(f"Note: {note}" for note in advice.notes)])


def short_runs(result: CandidateResult, digits: int = 3) -> str:
    """The metrics of the short runs of a plan, in the order of the rounds.

    Args:
        result: The plan.
        digits: Decimals.
    """
    return ", ".join(f"{run.score:.{digits}f}" for run in result.rounds) or "-"


def _plans(advice: AdviceRecord) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Plans", title_justify="left", title_style="bold")
    table.add_column("plan", overflow="fold")
    for name in ("trains", "time", "memory", "short runs", advice.monitor):
        table.add_column(name, justify="right", no_wrap=name != "short runs")
    for result in advice.results:
        mark = " *" if result.name == advice.recommended else ""
        table.add_row(f"{result.name}{mark}", *cells(result))
    return table


def cells(result: CandidateResult) -> list[str]:
    """What tables say of a plan: the share that trains, time, memory, short runs and the metric.

    Args:
        result: The plan.
    """
    return [
        "?" if result.peak_bytes is None and result.relative_time is None else percent(result.trainable),
        "?" if result.relative_time is None else f"{result.relative_time:.2f}",
        "?" if result.peak_bytes is None else show_size(result.peak_bytes),
        result.problem or short_runs(result),
        quality(result),
    ]


def _layers(advice: AdviceRecord) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Layers before training", title_justify="left", title_style="bold")
    table.add_column("layer", overflow="fold")
    for name in ("probe", "LogME", "gradient / weights", "tr Fisher"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in layer_rows(advice):
        table.add_row(*row)
    return table


def layer_rows(advice: AdviceRecord) -> list[list[str]]:
    """One row for each layer, from the input up: its name, the probe and LogME of its output, its gradients.

    Args:
        advice: The advice.
    """
    depths = {depth.name: depth for depth in advice.measurements.depths}
    layers = advice.measurements.layers
    rows = []
    for name in [*depths, *(name for name in layers if name not in depths)]:  # embeddings may have no gradients
        depth, gradients = depths.get(name), layers.get(name)
        rows.append(
            [
                name,
                "-" if depth is None else f"{depth.probe.mean:.3f} ± {depth.probe.error:.3f}",
                "-" if depth is None else f"{depth.log_me:.3f}",
                "-" if gradients is None else f"{gradients.relative_norm:.3g}",
                "-" if gradients is None or math.isnan(gradients.fisher_trace) else f"{gradients.fisher_trace:.3g}",
            ]
        )
    return rows
