"""A comparison as CSV: one row for each plan, and one for each fit."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from lightning_freeze.comparison.comparison_record import ComparisonRecord
from lightning_freeze.comparison.plan_summary import PlanSummary


def plans_csv(comparison: ComparisonRecord) -> str:
    """One row for each plan.

    Args:
        comparison: The comparison.
    """
    columns = (
        *("plan", "metric", "seeds", "failed", "mean", "standard_deviation", "baseline", "difference"),
        *("interval_low", "interval_high", "p_value", "p_value_holm", "seconds", "peak_memory_bytes", "parameters"),
        *("trainable_parameters", "mean_trained_share", "forgetting", "cache_hit_rate", "is_pareto"),
    )
    return _csv(columns, (_plan_row(plan, comparison) for plan in comparison.plans))


def fits_csv(comparison: ComparisonRecord) -> str:
    """One row for each fit, with all its metrics.

    Args:
        comparison: The comparison.
    """
    metrics = list(dict.fromkeys(name for fit in comparison.fits if fit.result for name in fit.result.metrics))
    fields = ("seconds", "peak_memory", "parameters", "trainable_parameters", "mean_trainable", "steps",
              "cache_hit_rate", "forgetting", "environment")  # fmt: skip
    rows = []
    for fit in comparison.fits:
        found = None if fit.result is None else fit.result
        values = [None if found is None else found.metrics.get(name) for name in metrics]
        values += [None if found is None else getattr(found, name) for name in fields]
        rows.append([fit.task.plan, fit.task.seed, *values, fit.error])
    return _csv(("plan", "seed", *metrics, *fields, "error"), rows)


def _plan_row(plan: PlanSummary, comparison: ComparisonRecord) -> Sequence[object]:
    test = plan.against
    interval = (None, None) if test is None or test.interval is None else test.interval
    return [
        *(plan.name, comparison.metric, len(plan.values), plan.failed, plan.mean, plan.spread, comparison.baseline),
        *(None if test is None else test.difference, *interval),
        *(None if test is None else test.p_value, None if test is None else test.corrected),
        *(plan.seconds, plan.peak_memory, plan.parameters, plan.trainable_parameters, plan.trained_share),
        *(plan.forgetting, plan.cache_hit_rate, plan.is_pareto),
    ]


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    return text.getvalue()
