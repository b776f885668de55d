"""Runs that take turns work one at a time, and each is timed alone."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from benchmarks.speedtest.turns import in_turns, pass_turn

SPLIT = 0.05


def run(name: str, parts: int, log: list[str], seconds: float = 0.0) -> Callable[[], int]:
    def go() -> int:
        for part in range(parts):
            log.append(f"{name}{part}")
            time.sleep(seconds)
            pass_turn()
        return parts

    return go


def test_they_alternate_until_each_has_ended() -> None:
    log: list[str] = []
    found = in_turns({"a": run("a", 3, log), "b": run("b", 1, log), "c": run("c", 2, log)})
    assert log == ["a0", "b0", "c0", "a1", "c1", "a2"]
    assert {name: result for name, (_, result) in found.items()} == {"a": 3, "b": 1, "c": 2}


def test_waiting_does_not_count() -> None:
    found = in_turns({"short": run("s", 2, [], SPLIT), "long": run("l", 2, [], 4 * SPLIT)})
    # Ten times with the turns of the other.
    assert 2 * SPLIT <= found["short"][0] < 7 * SPLIT


def test_an_error_ends_one_and_is_raised_in_the_end() -> None:
    log: list[str] = []

    def fails() -> int:
        pass_turn()
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        in_turns({"fails": fails, "a": run("a", 3, log)})
    assert log == ["a0", "a1", "a2"]


def test_a_run_alone_passes_no_turn() -> None:
    assert run("a", 2, [])() == 2
