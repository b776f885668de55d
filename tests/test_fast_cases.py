"""Of the cases of a test that is marked so, a few stay in the fast suite, and the others are slow."""

import subprocess
import sys
from pathlib import Path

import pytest
from fast_cases import evenly

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


def run(folder: Path, *options: str) -> str:
    """The cases that ran, in their order."""
    (folder / "test_cases.py").write_text(CASES)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    command = [sys.executable, "-m", "pytest", "-p", "fast_cases", "-p", "no:cacheprovider", "-s", "--strict-markers"]
    path = {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([*command, *options], cwd=folder, env=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return "".join(line.split("ran ")[1][0] for line in done.stdout.splitlines() if "ran " in line)


def test_some_cases_are_fast_and_the_others_slow(tmp_path: Path) -> None:
    assert run(tmp_path, "-m", "not slow", "test_cases.py") == "cexy1"
    assert run(tmp_path, "-m", "slow", "test_cases.py") == "abd"
    assert run(tmp_path, "test_cases.py") == "abcdexy1"
    assert run(tmp_path, "-m", "not slow", "test_cases.py::test_many[a]") == "a"


@pytest.mark.parametrize(
    ("length", "count", "places"), [(5, 1, {2}), (6, 3, {1, 3, 5}), (3, 3, {0, 1, 2}), (2, 7, {0, 1}), (0, 2, set())]
)
def test_places_are_spread_evenly(length: int, count: int, places: set[int]) -> None:
    assert evenly(length, count) == places
