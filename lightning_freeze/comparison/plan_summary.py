"""What a comparison finds out about each plan, from the measurements of its fits. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from lightning_freeze.comparison.fits import FitOutcome
from lightning_freeze.comparison.records import FitResult
from lightning_freeze.comparison.settings import Mode, Test
from lightning_freeze.comparison.statistics import PairedTest, corrected, mean_of, paired_test, spread_of


@dataclass(frozen=True)
class PlanSummary:
    """All fits of one plan.

    Attributes:
        name: The name of the plan.
        values: The metric by seed.
        failed: How many fits have failed.
        mean: The mean of the metric; ``None`` if no fit has succeeded.
        spread: Its standard deviation over the seeds; ``None`` with fewer than two, NaN if one is not finite.
        against: The paired test against the baseline; ``None`` for the baseline itself.
        seconds: Mean wall time of a fit.
        peak_memory: The most memory of any fit, in bytes.
        parameters: Number of elements in all parameters.
        trainable_parameters: The most of these that trained at the same time.
        trained_share: The share that trained in a training batch, on average.
        forgetting: The mean of the metric of forgetting; ``None`` if there is none.
        cache_hit_rate: The mean share of the samples that FrozenPrefixCache has read; ``None`` without one.
        is_pareto: Whether no other plan is both better and faster; ``False`` where the mean is not finite.
    """

    name: str
    values: Mapping[int, float]
    failed: int
    mean: float | None
    spread: float | None
    against: PairedTest | None
    seconds: float | None
    peak_memory: int | None
    parameters: int | None
    trainable_parameters: int | None
    trained_share: float | None
    forgetting: float | None
    cache_hit_rate: float | None
    is_pareto: bool = False


@dataclass(frozen=True)
class PlanPair:
    """The test of one plan against another, among all pairs.

    Attributes:
        plan: A plan.
        other: Another one.
        test: The test; ``None`` if they have no seed in common.
    """

    plan: str
    other: str
    test: PairedTest | None


def summarise(
    plans: Sequence[str], outcomes: Sequence[FitOutcome], metric: str, mode: Mode, baseline: str, test: Test
) -> list[PlanSummary]:
    """One record for each plan, in order.

    Args:
        plans: The names of the plans.
        outcomes: How all fits ended.
        metric: The metric that counts.
        mode: Whether a larger one is better.
        baseline: The plan that the others are tested against.
        test: The test.
    """
    values = {plan: values_of(plan, outcomes, metric) for plan in plans}
    others = [plan for plan in plans if plan != baseline]
    tests = corrected([paired_test(values[plan], values[baseline], test) for plan in others])
    against = dict(zip(others, tests, strict=True))
    rows = [_summary(plan, values[plan], against.get(plan), outcomes) for plan in plans]
    return [replace(row, is_pareto=_is_pareto(row, rows, mode)) for row in rows]


def all_pairs(plans: Sequence[str], outcomes: Sequence[FitOutcome], metric: str, test: Test) -> list[PlanPair]:
    """The test of each plan against each other, corrected for all of them.

    Args:
        plans: The names of the plans.
        outcomes: How all fits ended.
        metric: The metric that counts.
        test: The test.
    """
    values = {plan: values_of(plan, outcomes, metric) for plan in plans}
    pairs = list(combinations(plans, 2))
    tests = corrected([paired_test(values[one], values[other], test) for one, other in pairs])
    return [PlanPair(one, other, found) for (one, other), found in zip(pairs, tests, strict=True)]


def values_of(plan: str, outcomes: Iterable[FitOutcome], metric: str) -> dict[int, float]:
    """The metric of a plan by seed.

    Args:
        plan: The name of the plan.
        outcomes: How all fits ended.
        metric: The metric.
    """
    return {
        outcome.task.seed: outcome.result.metrics[metric]
        for outcome in outcomes
        if outcome.task.plan == plan and outcome.result is not None and metric in outcome.result.metrics
    }


def _summary(
    plan: str, values: Mapping[int, float], against: PairedTest | None, outcomes: Sequence[FitOutcome]
) -> PlanSummary:
    mine = [outcome for outcome in outcomes if outcome.task.plan == plan]
    results = [outcome.result for outcome in mine if outcome.result is not None]
    return PlanSummary(
        name=plan,
        values=values,
        failed=len(mine) - len(results),
        mean=_mean(values.values()),
        spread=spread_of(values.values()) if len(values) > 1 else None,
        against=against,
        seconds=_mean(result.seconds for result in results),
        peak_memory=max((r.peak_memory for r in results if r.peak_memory is not None), default=None),
        parameters=max((result.parameters for result in results), default=None),
        trainable_parameters=max((result.trainable_parameters for result in results), default=None),
        trained_share=_mean(_share(result) for result in results),
        forgetting=_mean(result.forgetting for result in results if result.forgetting is not None),
        cache_hit_rate=_mean(result.cache_hit_rate for result in results if result.cache_hit_rate is not None),
    )


def _share(result: FitResult) -> float:
    return result.mean_trainable / max(1, result.parameters)


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return mean_of(found) if found else None


def _is_pareto(row: PlanSummary, rows: Iterable[PlanSummary], mode: Mode) -> bool:
    mine = _standing(row, mode)
    others = [found for other in rows if (found := _standing(other, mode)) is not None]
    return mine is not None and not any(
        quality >= mine[0] and speed >= mine[1] and (quality, speed) != mine for quality, speed in others
    )


def _standing(row: PlanSummary, mode: Mode) -> tuple[float, float] | None:
    """The quality and the speed of a plan, larger ones being better; ``None`` where they cannot be compared."""
    if row.mean is None or row.seconds is None or not math.isfinite(row.mean):
        return None
    return (row.mean if mode == "max" else -row.mean), -row.seconds
