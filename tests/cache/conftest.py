"""Models so small that reading them back may take as long as computing them."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def always_worth_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_freeze.cache.prefix.break_even.SLOWER", 1e9)
