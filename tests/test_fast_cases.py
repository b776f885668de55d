"""Of the cases of a test that is marked so, a few stay in the fast suite, and the others are slow."""

from pathlib import Path

import pytest
from child_pytest import run_pytest
from fast_cases import spread

CASES = """
import pytest

@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("letter", ["a", pytest.param("b", marks=pytest.mark.slow), "c", "d", "e"])
def test_many(letter):
    print(f"ran {letter}")

@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("letter", ["x", "y"])
def test_few(letter):
    print(f"ran {letter}")

def test_one():
    print("ran 1")
"""


def run(folder: Path, *options: str, tests: str = CASES) -> str:
    """The cases that ran, in their order."""
    return "".join(run_pytest(folder, "fast_cases", tests, *options)[0])


def test_some_cases_are_fast_and_the_others_slow(tmp_path: Path) -> None:
    assert run(tmp_path, "-m", "not slow") == "cexy1"
    assert run(tmp_path, "-m", "slow") == "abd"
    assert run(tmp_path) == "abcdexy1"
    assert run(tmp_path, "--all-cases", "-m", "not slow") == "acdexy1"
    # What is slow does not depend on what else was asked for.
    assert run(tmp_path, "-m", "slow", "test_them.py::test_many[a]") == "a"


def test_cases_by_their_ids_come_first(tmp_path: Path) -> None:
    assert run(tmp_path, "-m", "not slow", tests=CASES.replace("(2)", '(2, "d")', 1)) == "cdxy1"
    _, text = run_pytest(tmp_path, "fast_cases", CASES.replace("(2)", '(2, "z")', 1), fails=True)
    assert "fast_cases('z') is none of its cases" in text


@pytest.mark.parametrize(
    ("length", "count", "places"), [(5, 1, {2}), (6, 3, {1, 3, 5}), (3, 3, {0, 1, 2}), (2, 7, {0, 1}), (0, 2, set())]
)
def test_places_are_spread_evenly(length: int, count: int, places: set[int]) -> None:
    assert spread([{place} for place in range(length)], count) == places


def test_every_value_of_each_parameter_is_kept_if_it_can_be() -> None:
    values = [{letter, number} for letter in "abc" for number in range(4)]
    kept = spread(values, 4)
    assert len(kept) == 4
    assert set().union(*(values[place] for place in kept)) == set().union(*values)
