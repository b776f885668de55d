"""``@pytest.mark.fast_cases(7)``: of all cases of a test, seven that are spread evenly stay fast, the others are slow.

A test of many models or settings thus keeps all its cases, while ``-m "not slow"`` ends in minutes. Cases that are slow
anyway do not count, and a case that is asked for by its name is fast.
"""

from __future__ import annotations

from collections import defaultdict

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fast_cases(count): all other cases of this test are slow")


def evenly(length: int, count: int) -> set[int]:
    """Places of ``count`` of ``length`` items, as evenly as it goes; all of them where there are fewer."""
    return set(range(length)) if count >= length else {(2 * i + 1) * length // (2 * count) for i in range(count)}


@pytest.hookimpl(tryfirst=True)  # before `-m` leaves tests out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    cases = defaultdict(list)
    for item in items:
        if item.get_closest_marker("fast_cases") and not item.get_closest_marker("slow"):
            cases[item.path, getattr(item, "originalname", item.name)].append(item)
    for those in cases.values():
        (count,) = those[0].get_closest_marker("fast_cases").args
        fast = evenly(len(those), count)
        for place, item in enumerate(those):
            if place not in fast:
                item.add_marker(pytest.mark.slow)
