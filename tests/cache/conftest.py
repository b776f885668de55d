"""Test models are so small that reading may take longer than computing; this must not switch the cache off."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def always_worth_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_freeze.cache.prefix.break_even.SLOWER", 1e9)
