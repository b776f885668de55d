"""Ends a run of the tests in time: a test that has not begun by then is skipped, and the summary says how many were.

    pytest -m slow --minutes 10 --begin-at 0.4

``--begin-at`` is the place of the first test in the usual order. With another one each time, none is always left out.
"""

from __future__ import annotations

import time

import pytest

_END = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("time limit")
    group.addoption("--minutes", type=float, help="skip tests that have not begun after so many minutes")
    group.addoption("--begin-at", type=float, default=0.0, help="place of the first test, from 0 to 1 (default: 0)")


def pytest_configure(config: pytest.Config) -> None:
    minutes = config.getoption("minutes")
    config.stash[_END] = float("inf") if minutes is None else time.monotonic() + 60 * minutes


@pytest.hookimpl(trylast=True)  # after those that leave tests out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    first = int(config.getoption("begin_at") * len(items))
    items[:] = items[first:] + items[:first]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.monotonic() >= item.config.stash[_END]:
        pytest.skip(f"it had not begun after {item.config.getoption('minutes'):g} minutes (--minutes)")
