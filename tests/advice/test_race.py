from __future__ import annotations

import pytest

from lightning_freeze.advice.race import Round, Standing, halving_rounds, run_race


def test_every_round_spends_the_same_and_halves_the_field() -> None:
    rounds = halving_rounds(8, budget=4)
    assert [each.candidates for each in rounds] == [8, 4]
    assert [each.candidates * each.share for each in rounds] == pytest.approx([2, 2])
    assert halving_rounds(9, budget=3) == [Round(9, 1 / 9), Round(5, 1 / 5), Round(3, 1 / 3)]


def test_no_candidate_trains_for_longer_than_a_run_and_two_need_no_round() -> None:
    assert halving_rounds(4, budget=100) == [Round(4, 1.0)]
    assert halving_rounds(2, budget=1) == []
    assert halving_rounds(1, budget=1) == []


@pytest.mark.parametrize(("candidates", "budget"), [(0, 1.0), (3, 0.0), (3, float("nan")), (3, float("inf"))])
def test_wrong_numbers_are_named(candidates: int, budget: float) -> None:
    with pytest.raises(ValueError, match=r"(candidates=0|budget=)"):
        halving_rounds(candidates, budget)


def race(qualities: dict[str, float], reference: str, budget: float = 2, seeds: int = 2) -> tuple[Standing, list[str]]:
    fits: list[str] = []

    def fit(name: str, share: float, seed: int) -> float:
        fits.append(f"{name} {share:.2f} {seed}")
        return qualities[name]

    return run_race(list(qualities), reference, fit, budget, seeds), fits


def test_the_best_reaches_the_final_beside_the_reference() -> None:
    standing, fits = race({"full": 0.1, "a": 0.5, "b": 0.9, "c": 0.3}, "full")
    assert standing.finalists == ("b", "full")
    assert standing.rounds == ((("b", "a", "c", "full"), 0.5),)
    assert fits == [
        "full 0.50 0",
        "a 0.50 0",
        "b 0.50 0",
        "c 0.50 0",
        "b 1.00 0",
        "full 1.00 0",
        "b 1.00 1",
        "full 1.00 1",
    ]


def test_where_the_reference_wins_the_next_one_is_its_rival() -> None:
    standing, _ = race({"full": 0.9, "a": 0.5, "b": 0.7, "c": 0.3, "d": 0.1}, "full")
    assert standing.finalists == ("full", "b")


def test_a_score_that_is_no_number_loses() -> None:
    standing, _ = race({"full": 0.1, "a": float("nan"), "b": 0.2}, "full")
    assert standing.finalists == ("b", "full")


def test_the_reference_alone_is_trained_too() -> None:
    standing, fits = race({"full": 0.1}, "full", seeds=1)
    assert standing.finalists == ("full",)
    assert fits == ["full 1.00 0"]


def test_wrong_names_and_seeds() -> None:
    with pytest.raises(ValueError, match="with 'x' among them"):
        race({"full": 1.0}, "x")
    with pytest.raises(ValueError, match="seeds=0"):
        race({"full": 1.0}, "full", seeds=0)
