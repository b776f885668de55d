"""``@pytest.mark.fast_cases(7)``: seven cases of a test, spread over all of them, stay fast, the others are slow.

A test of many models or settings thus keeps all its cases, while ``-m "not slow"`` ends in minutes. Ids of cases that
come first may follow: ``fast_cases(3, "bert", "gpt2")``. Cases that are marked ``slow`` already are not counted. With
``--all-cases`` the marker does nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-cases", action="store_true", help="ignore fast_cases: no case is slow for being one of many"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "fast_cases(count, *ids): keep so many cases fast, these first; the others are slow"
    )


@pytest.hookimpl(wrapper=True)  # here all cases of a function are at hand, whatever is left out later
def pytest_pycollect_makeitem(collector: pytest.Collector) -> Generator[None, Any, Any]:
    made = yield
    if isinstance(made, list) and not collector.config.getoption("all_cases"):
        _mark([item for item in made if isinstance(item, pytest.Function)])
    return made


def _mark(items: Sequence[pytest.Function]) -> None:
    cases = [item for item in items if item.get_closest_marker("fast_cases") and not item.get_closest_marker("slow")]
    if not cases:
        return
    count, *ids = cases[0].get_closest_marker("fast_cases").args
    known = [item.callspec.id for item in cases]
    if unknown := [name for name in ids if name not in known]:
        raise pytest.Collector.CollectError(
            f"{cases[0].nodeid}: fast_cases({unknown[0]!r}) is none of its cases: {known}"
        )
    values = [{(name, id(value)) for name, value in item.callspec.params.items()} for item in cases]
    fast = spread(values, count, [known.index(name) for name in ids])
    for place, item in enumerate(cases):
        if place not in fast:
            item.add_marker(pytest.mark.slow)


def spread(values: Sequence[set[Any]], count: int, first: Sequence[int] = ()) -> set[int]:
    """Choose ``count`` cases: each next one has most values that none before it has; where all are alike, evenly.

    Args:
        values: The values of the parameters of each case.
        count: How many to choose; all of them where there are fewer.
        first: Places of cases that are chosen anyway.
    """
    total = len(values)
    evenly = [(2 * i + 1) * total // (2 * count) for i in range(count)] if count < total else []
    order = [*evenly, *(place for place in range(total) if place not in evenly)]
    chosen = set(first)
    seen = set().union(*(values[place] for place in first))
    while len(chosen) < min(count, total):
        place = max((place for place in order if place not in chosen), key=lambda place: len(values[place] - seen))
        chosen.add(place)
        seen |= values[place]
    return chosen
