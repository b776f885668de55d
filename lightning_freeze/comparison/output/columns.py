"""The columns of the table of plans, and the sentences below it; the terminal and the page show the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lightning_freeze.cache.store.sizes import show_size
from lightning_freeze.comparison.comparison_record import ComparisonRecord
from lightning_freeze.comparison.plan_summary import PlanSummary
from lightning_freeze.comparison.statistics import SIGNIFICANCE, PairedTest
from lightning_freeze.layers.wording import count, percent

TESTS = {"t": "Student's paired t-test", "wilcoxon": "Wilcoxon's signed-rank test"}


class Column(NamedTuple):
    """A column.

    Attributes:
        title: Its heading.
        cell: The text of a plan in it.
    """

    title: str
    cell: Callable[[PlanSummary], str]


def columns_of(comparison: ComparisonRecord) -> list[Column]:
    """The columns that have anything to show, the name of the plan first.

    Args:
        comparison: The comparison.
    """
    found = [
        Column("plan", lambda plan: plan.name),
        Column(comparison.metric, mean_text),
        Column(f"against {comparison.baseline}", lambda plan: difference_text(plan.against)),
        Column("p (Holm)", lambda plan: p_text(plan.against)),
        Column("time", lambda plan: "-" if plan.seconds is None else time_text(plan.seconds)),
        Column("memory", lambda plan: "-" if plan.peak_memory is None else show_size(plan.peak_memory)),
        Column("trainable", _trainable),
        Column("on average", lambda plan: "-" if plan.trained_share is None else percent(plan.trained_share)),
    ]
    if any(plan.forgetting is not None for plan in comparison.plans):
        found.append(Column("forgetting", lambda plan: _number(plan.forgetting)))
    if any(plan.cache_hit_rate is not None for plan in comparison.plans):
        rate = "from cache"
        found.append(Column(rate, lambda plan: "-" if plan.cache_hit_rate is None else f"{plan.cache_hit_rate:.0%}"))
    return found


def mean_text(plan: PlanSummary) -> str:
    """The mean of a plan, with the standard deviation over the seeds, and how many seeds are missing."""
    if plan.mean is None:
        return "failed"
    text = f"{plan.mean:.4g}" if plan.spread is None else f"{plan.mean:.4f} ± {plan.spread:.4f}"
    return text + (f" ({plan.failed} failed)" if plan.failed else "")


def difference_text(test: PairedTest | None, digits: int = 4) -> str:
    """A mean difference with its confidence interval, with so many decimal places."""
    if test is None:
        return "-"
    difference = f"{test.difference:+.{digits}f}"
    if test.interval is None:
        return difference
    return f"{difference} [{test.interval[0]:+.{digits}f}, {test.interval[1]:+.{digits}f}]"


def p_text(test: PairedTest | None) -> str:
    """A corrected p-value."""
    if test is None or test.corrected is None:
        return "-"
    return f"{test.corrected:.1e}" if test.corrected < 0.001 else f"{test.corrected:.3f}"


def time_text(seconds: float) -> str:
    """A wall time."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def verdict(comparison: ComparisonRecord) -> str:
    """Which plan wins, in one or two sentences."""
    best = comparison.best
    word = "highest" if comparison.mode == "max" else "lowest"
    sentences = [f"{best.name} has the {word} mean {comparison.metric}, {_number(best.mean)}."]
    if comparison.beaten:
        sentences.append(f"It is better than {_and(comparison.beaten)} (p < {SIGNIFICANCE}, all pairs).")
    if comparison.undecided:
        sentences.append(f"The seeds do not show that it is better than {_and(comparison.undecided)}.")
    if failed := comparison.failed:
        sentences.append(f"{_and(failed)} {'has' if len(failed) == 1 else 'have'} no result: no fit has succeeded.")
    return " ".join(sentences)


def legend(comparison: ComparisonRecord) -> str:
    """How to read the table."""
    memory = {fit.result.memory_of for fit in comparison.fits if fit.result is not None}
    what = "on the accelerator" if memory == {"accelerator"} else "of the whole process, libraries included"
    several = "Mean and standard deviation" if len(comparison.seeds) > 1 else "Measured"
    lines = [
        f"{several} over {len(comparison.seeds)} seed{'s' * (len(comparison.seeds) != 1)}; differences from "
        f"{comparison.baseline} with 95% confidence intervals, which are not corrected; p is that of "
        f"{TESTS[comparison.test]} with Holm's correction.",
        f"Time is the mean wall time of a fit, memory the peak {what}.",
        "Trainable is the most that trained at the same time, and the share that trained in a batch on average.",
    ]
    if any(plan.forgetting is not None for plan in comparison.plans):
        lines.append(
            "Forgetting is how much worse the metric of forgetting is than before the fit; of the callback Forgetting, "
            "1 minus the correlation of rankings."
        )
    return " ".join(lines)


def _trainable(plan: PlanSummary) -> str:
    return "-" if plan.trainable_parameters is None else count(plan.trainable_parameters)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
