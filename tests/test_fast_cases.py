"""Of the cases of a test that is marked so, a few stay in the fast suite, and the others are slow."""

import subprocess
import sys
from pathlib import Path

import pytest
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


def run(folder: Path, *options: str, cases: str = CASES, fails: bool = False) -> str:
    """The cases that ran, in their order, or what pytest printed where it is meant to fail."""
    (folder / "test_cases.py").write_text(cases)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    command = [sys.executable, "-m", "pytest", "-p", "fast_cases", "-p", "no:cacheprovider", "-s", "--strict-markers"]
    path = {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([*command, *options], cwd=folder, env=path, capture_output=True, text=True)
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    ran = [line.split("ran ")[1][0] for line in done.stdout.splitlines() if "ran " in line]
    return done.stdout if fails else "".join(ran)


def test_some_cases_are_fast_and_the_others_slow(tmp_path: Path) -> None:
    assert run(tmp_path, "-m", "not slow") == "cexy1"
    assert run(tmp_path, "-m", "slow") == "abd"
    assert run(tmp_path) == "abcdexy1"
    assert run(tmp_path, "--all-cases", "-m", "not slow") == "acdexy1"
    # What is slow does not depend on what else was asked for.
    assert run(tmp_path, "-m", "slow", "test_cases.py::test_many[a]") == "a"


def test_cases_by_their_ids_come_first(tmp_path: Path) -> None:
    assert run(tmp_path, "-m", "not slow", cases=CASES.replace("(2)", '(2, "d")', 1)) == "cdxy1"
    assert "fast_cases('z') is none of its cases" in run(
        tmp_path, cases=CASES.replace("(2)", '(2, "z")', 1), fails=True
    )


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
