"""The limit on the time of a run skips what has not begun, and says so."""

from pathlib import Path

import pytest
from child_pytest import run_pytest

FOUR = """
import time
import pytest

@pytest.mark.parametrize("number", range(4))
def test_one(number):
    print(f"ran {number}")
    time.sleep(WAIT)
"""


def run(folder: Path, *options: str, wait: float = 0.0) -> tuple[list[str], str]:
    """The numbers of the tests that ran, in their order, and all that pytest printed."""
    return run_pytest(folder, "time_limit", FOUR.replace("WAIT", str(wait)), *options)


def test_all_run_without_a_limit_and_within_one(tmp_path):
    assert run(tmp_path)[0] == ["0", "1", "2", "3"]
    assert run(tmp_path, "--minutes=1")[0] == ["0", "1", "2", "3"]


@pytest.mark.slow
def test_what_has_not_begun_is_skipped_and_counted(tmp_path):
    ran, text = run(tmp_path, "--minutes=0.1", wait=7.0)
    assert ran == ["0"]
    assert "1 passed, 3 skipped" in text
    assert "it had not begun after 0.1 minutes (--minutes)" in text


def test_the_place_of_the_first_one(tmp_path):
    assert run(tmp_path, "--begin-at=0.5")[0] == ["2", "3", "0", "1"]
    assert run(tmp_path, "--begin-at=0.99")[0] == ["3", "0", "1", "2"]
