"""Test models are so small that reading may take longer than computing; this must not switch the cache off."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def always_worth_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_freeze.cache.prefix.break_even.SLOWER", 1e9)


@pytest.fixture
def tiny_weights_leave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Offloading moves weights of any size, to a file in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning_freeze.cache.offload._LEAST_BYTES", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
