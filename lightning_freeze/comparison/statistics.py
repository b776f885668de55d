"""Paired tests over the seeds, and Holm's correction for several of them. Needs scipy (extra ``compare``)."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

# Up to so many differences all combinations of their signs are counted, as newer versions of scipy do by themselves.
_COUNTED = 13

#: Differences with a smaller p-value are taken for real.
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class PairedTest:
    """The difference of two plans over the seeds that both have.

    Attributes:
        seeds: How many seeds these are.
        difference: The mean of the differences.
        interval: The 95% confidence interval of the mean, of Student's t; ``None`` with fewer than two seeds.
        p_value: How probable differences as large as these are if the plans are equal; ``None`` with fewer than two
            seeds.
        corrected: The p-value with Holm's correction for all tests of the family.
    """

    seeds: int
    difference: float
    interval: tuple[float, float] | None
    p_value: float | None
    corrected: float | None = None

    @property
    def is_significant(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.corrected is not None and self.corrected < SIGNIFICANCE


def mean_of(values: Iterable[float]) -> float:
    """The mean. Infinite values of both signs give NaN, where the standard library raises an error.

    Args:
        values: At least one.
    """
    found = list(values)
    return statistics.fmean(found) if all(map(math.isfinite, found)) else sum(found) / len(found)


def spread_of(values: Iterable[float]) -> float:
    """The standard deviation; NaN if a value is NaN or infinite, where the standard library raises an error.

    Args:
        values: At least two.
    """
    found = list(values)
    return statistics.stdev(found) if all(map(math.isfinite, found)) else math.nan


def paired_test(
    values: Mapping[int, float], others: Mapping[int, float], test: Literal["t", "wilcoxon"]
) -> PairedTest | None:
    """Test whether two plans differ.

    Args:
        values: The metric of a plan, by seed.
        others: The metric of the other plan, by seed.
        test: ``"t"`` for Student's paired t-test, ``"wilcoxon"`` for Wilcoxon's signed-rank test. With up to 13 seeds
            the p-value of the latter is exact, also where differences are equal or zero; with more seeds it is then
            approximate.

    Returns:
        The test; ``None`` if no seed has finite values of both.
    """
    pairs = [(values[seed], others[seed]) for seed in values if seed in others]
    pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
    differences = [one - other for one, other in pairs]
    if not differences:
        return None
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return PairedTest(1, mean, None, None)
    if all(math.isclose(difference, mean, rel_tol=1e-9, abs_tol=1e-15) for difference in differences):
        # Without any spread Student's test is not defined, except that equal plans are equal.
        p_value = 1.0 if mean == 0 else _wilcoxon(differences) if test == "wilcoxon" else None
        return PairedTest(len(differences), mean, (mean, mean), p_value)
    from scipy import stats

    student = stats.ttest_rel(*zip(*pairs, strict=True))
    interval = student.confidence_interval(0.95)
    p_value = _wilcoxon(differences) if test == "wilcoxon" else student.pvalue
    return PairedTest(len(differences), mean, (float(interval.low), float(interval.high)), float(p_value))


def _wilcoxon(differences: Sequence[float]) -> float:
    """The p-value of the signed ranks; differences of zero are left out, as Wilcoxon did."""
    from scipy import stats

    changed = [difference for difference in differences if difference != 0]
    if not changed:
        return 1.0
    method = stats.PermutationMethod() if len(changed) <= _COUNTED else "auto"
    with warnings.catch_warnings():
        # With more differences, ties make the p-value approximate.
        warnings.filterwarnings("ignore", category=UserWarning, module="scipy")
        return float(stats.wilcoxon(changed, method=method).pvalue)


def smallest_p_value(seeds: int, test: Literal["t", "wilcoxon"]) -> float:
    """The smallest p-value that a test can have, however large the differences are.

    Args:
        seeds: How many seeds there are.
        test: The test.
    """
    return 2.0 / 2**seeds if test == "wilcoxon" else 0.0


def corrected(tests: Sequence[PairedTest | None]) -> list[PairedTest | None]:
    """Tests with Holm's correction; those without a p-value do not count.

    Args:
        tests: The tests of one family.
    """
    adjusted = iter(holm([test.p_value for test in tests if test is not None and test.p_value is not None]))
    return [test if test is None or test.p_value is None else replace(test, corrected=next(adjusted)) for test in tests]


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for the number of tests (Holm, 1979).

    The probability of one false discovery or more stays below the level at which the corrected values are read,
    whatever depends on what.

    Args:
        p_values: The p-values of one family of tests.

    Returns:
        The corrected ones, in the same order.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    found, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        found[index] = largest
    return found
