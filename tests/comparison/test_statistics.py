"""Paired tests against scipy and numbers from books, and Holm's correction."""

from __future__ import annotations

import math
from itertools import product

import pytest

from lightning_freeze.comparison.statistics import corrected, holm, paired_test, smallest_p_value

stats = pytest.importorskip("scipy.stats")

# Student (1908), the extra hours of sleep with two drugs: t = 4.0621 on 9 degrees of freedom, p = 0.002833.
FIRST = dict(enumerate([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]))
SECOND = dict(enumerate([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]))


def test_student_on_the_data_of_student() -> None:
    test = paired_test(SECOND, FIRST, "t")
    assert test is not None and test.p_value is not None and test.interval is not None
    assert test.seeds == 10
    assert test.difference == pytest.approx(1.58)
    assert test.p_value == pytest.approx(0.002833, abs=5e-7)
    assert test.p_value == pytest.approx(stats.ttest_rel(list(SECOND.values()), list(FIRST.values())).pvalue)
    assert test.interval == pytest.approx((0.7001142, 2.4598858), abs=1e-6)


def test_wilcoxon() -> None:
    test = paired_test(SECOND, FIRST, "wilcoxon")
    assert test is not None
    # Nine of ten patients differ, all in the same direction.
    assert test.p_value == pytest.approx(2 / 2**9)
    differences = [SECOND[seed] - FIRST[seed] for seed in FIRST if SECOND[seed] != FIRST[seed]]
    assert test.p_value == pytest.approx(stats.wilcoxon(differences).pvalue)


def test_values_are_paired_by_seed_not_by_position() -> None:
    shuffled = dict(sorted(FIRST.items(), key=lambda item: item[1]))
    assert paired_test(SECOND, shuffled, "t") == paired_test(SECOND, FIRST, "t")
    fewer = {seed: value for seed, value in FIRST.items() if seed != 4}
    test = paired_test({**SECOND, 1: math.nan}, fewer, "t")
    assert test is not None and test.seeds == 8


def test_too_little_to_test() -> None:
    assert paired_test({0: 1.0}, {1: 1.0}, "t") is None
    one = paired_test({0: 1.5}, {0: 1.0}, "t")
    assert one is not None and (one.difference, one.interval, one.p_value) == (0.5, None, None)
    equal = paired_test({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, "wilcoxon")
    assert equal is not None and equal.p_value == 1.0
    constant = paired_test({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}, "t")
    assert constant is not None and constant.p_value is None


@pytest.mark.parametrize(
    "differences",
    [[2, 2, 2, 2, 3], [1, 1, 1, 1, -2], [0, 1, 1, 2, 3], [0, 0, 1, -1, 2, 2], [1, 1, 1, 1, 1, 1], [1, 2, 3, 4, -5]],
)
def test_wilcoxon_with_ties_and_zeros_counts_all_signs(differences: list[int]) -> None:
    changed = [value for value in differences if value]
    ranks = stats.rankdata([abs(value) for value in changed])
    distance = abs(sum(rank if value > 0 else -rank for rank, value in zip(ranks, changed, strict=True)))
    sums = [sum(s * r for s, r in zip(signs, ranks, strict=True)) for signs in product((-1, 1), repeat=len(changed))]
    expected = sum(abs(total) >= distance for total in sums) / len(sums)
    test = paired_test(
        dict(enumerate(map(float, differences))), dict.fromkeys(range(len(differences)), 0.0), "wilcoxon"
    )
    assert test is not None and test.p_value == pytest.approx(expected)


def test_holm_on_known_numbers() -> None:
    # The values of R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm").
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_tests_without_a_p_value_do_not_count_in_the_correction() -> None:
    some = [paired_test(SECOND, FIRST, "t"), None, paired_test({0: 1.5}, {0: 1.0}, "t")]
    found = corrected(some)
    assert found[0] is not None and found[0].corrected == found[0].p_value and found[0].is_significant
    assert found[1] is None
    assert found[2] is not None and found[2].corrected is None and not found[2].is_significant


@pytest.mark.parametrize("seeds", [2, 3, 5, 6, 8])
def test_the_smallest_p_value_of_wilcoxon(seeds: int) -> None:
    best = paired_test({seed: seed + 1.0 for seed in range(seeds)}, {seed: -seed for seed in range(seeds)}, "wilcoxon")
    assert best is not None and best.p_value == pytest.approx(smallest_p_value(seeds, "wilcoxon"))
