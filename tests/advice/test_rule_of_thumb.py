from __future__ import annotations

import itertools
from typing import Any

import pytest

from lightning_freeze import RuleOfThumb, rule_of_thumb

COMPUTE = ("low", "medium", "high")


@pytest.mark.parametrize(
    ("similarity", "examples", "compute", "frozen", "layers"),
    [
        (0.9, 500, "low", 1.0, "100%"),
        (0.9, 500, "high", 1.0, "100%"),
        (0.9, 5_000, "medium", 0.75, "75%"),
        (0.6, 500, "medium", 0.75, "75%"),
        (0.6, 5_000, "medium", 0.5, "50%"),
        (0.3, 500, "low", 0.5, "50%"),
        (0.3, 5_000, "high", 0.25, "25%"),
        (0.3, 50_000, "high", 0.0, ""),
        (0.6, 50_000, "high", 0.0, ""),
    ],
)
def test_how_much_to_freeze(similarity: float, examples: int, compute: Any, frozen: float, layers: str) -> None:
    advice = rule_of_thumb(similarity, examples, compute)
    assert (advice.frozen, advice.layers) == (frozen, layers)


def test_the_limits_are_strict_for_similarity_and_count_from_them_for_examples() -> None:
    assert rule_of_thumb(0.8, 500, "low").frozen == rule_of_thumb(0.6, 500, "low").frozen
    assert rule_of_thumb(0.81, 500, "low").frozen == 1.0
    assert rule_of_thumb(0.5, 500, "low").frozen == rule_of_thumb(0.1, 500, "low").frozen
    assert rule_of_thumb(0.9, 999, "high").frozen == 1.0
    assert rule_of_thumb(0.9, 1_000, "high").frozen == 0.5
    assert rule_of_thumb(0.9, 9_999, "high").frozen == 0.5
    assert rule_of_thumb(0.9, 10_000, "high").frozen == 0.0


def test_more_similarity_fewer_examples_and_less_compute_never_freeze_less() -> None:
    similarities, amounts = (0.2, 0.6, 0.9), (500, 5_000, 50_000)
    for similarity, amount in itertools.product(similarities, amounts):
        row = [rule_of_thumb(similarity, amount, compute).frozen for compute in COMPUTE]  # type: ignore[arg-type]
        assert row == sorted(row, reverse=True)
    for amount, compute in itertools.product(amounts, COMPUTE):
        row = [rule_of_thumb(similarity, amount, compute).frozen for similarity in similarities]  # type: ignore[arg-type]
        assert row == sorted(row)
    for similarity, compute in itertools.product(similarities, COMPUTE):
        row = [rule_of_thumb(similarity, amount, compute).frozen for amount in amounts]  # type: ignore[arg-type]
        assert row == sorted(row, reverse=True)


@pytest.mark.parametrize("compute", COMPUTE)
def test_high_similarity_with_much_data_is_never_half_and_says_why(compute: Any) -> None:
    advice = rule_of_thumb(0.95, 100_000, compute)
    assert advice.frozen != 0.5
    assert "often quoted" in advice.weakness
    assert "compute decides" in advice.weakness


def test_the_answer_names_its_reason_and_its_weakness() -> None:
    advice = rule_of_thumb(0.9, 5_000, "low")
    assert isinstance(advice, RuleOfThumb)
    assert "0.9 > 0.8" in advice.reason
    assert "5,000 examples" in advice.reason
    assert "compute is low" in advice.reason
    assert "full fine-tuning often wins" in advice.weakness
    assert 'LayerFreezing("75%")' in str(advice)
    assert "train all" in str(rule_of_thumb(0.1, 10**6, "high"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.2, 500, "low"), r"similarity=1.2: expected a number from 0 to 1. Did you mean 1\?"),
        ((90, 500, "low"), r"Did you mean 0.9\?"),
        ((-0.1, 500, "low"), "similarity=-0.1"),
        ((float("nan"), 500, "low"), "similarity=nan"),
        (("high", 500, "low"), "similarity='high'"),
        ((True, 500, "low"), "similarity=True"),
        ((0.5, 0, "low"), "num_examples=0: expected 1 or more"),
        ((0.5, -3, "low"), "num_examples=-3"),
        ((0.5, 1.5, "low"), "num_examples=1.5: expected a whole number"),
        ((0.5, float("inf"), "low"), "num_examples=inf"),
        ((0.5, "many", "low"), "num_examples='many'"),
        ((0.5, True, "low"), "num_examples=True"),
        ((0.5, 500, "hihg"), r"compute='hihg': expected 'low', 'medium' or 'high'. Did you mean 'high'\?"),
        ((0.5, 500, None), "compute=None"),
    ],
)
def test_a_value_out_of_range_is_named(arguments: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule_of_thumb(*arguments)


def test_any_whole_number_of_examples_will_do() -> None:
    assert rule_of_thumb(0.9, 10**400, "low").frozen == 0.75
    assert "with 5,000 examples" in rule_of_thumb(0.9, 5000.0, "low").reason  # type: ignore[arg-type]
    for wrong in (float("inf"), float("nan"), 0.5):
        with pytest.raises(ValueError, match="expected a whole number"):
            rule_of_thumb(0.9, wrong, "low")  # type: ignore[arg-type]
