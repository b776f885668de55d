"""Weights that cannot leave stay where they are, and the run goes on."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cached_fits import Plain
from encoders import bert
from offloaded_fits import away, fit, prefix
from torch import Tensor, nn

from lightning_freeze.cache.offload import WeightOffload

pytestmark = pytest.mark.usefixtures("tiny_weights_leave")


def fit_and_listen(module: Any = None, **options: Any) -> tuple[list[str], Any]:
    """Return the warnings about offloading in a fit, and what was away."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, watch = fit(None, module, **options)
    assert not watch.cache.reasons and away(watch.cache) == 0  # type: ignore[union-attr]
    return [str(w.message) for w in caught if "offload" in str(w.message)], watch


def no_room(self: WeightOffload, parameters: list[nn.Parameter]) -> list[Tensor]:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


def test_host_memory_that_is_full_is_told_once_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightOffload, "_host_copies", no_room)
    said, watch = fit_and_listen()
    assert len(said) == 1 and "does nothing: the weights cannot leave (RuntimeError: DefaultCPU" in said[0]
    assert len(watch.before) == 24 and not any(watch.before)


def test_weights_that_have_left_before_an_error_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Plain(bert())
    expected = [p.clone() for p in prefix(module)]
    found: list[Any] = []

    def last_fails(self: WeightOffload, parameters: list[nn.Parameter]) -> list[Any]:
        found.extend(parameters)
        return [p.data.clone() for p in parameters[:-1]] + [None]

    monkeypatch.setattr(WeightOffload, "_host_copies", last_fails)
    said, watch = fit_and_listen(module)
    assert len(said) == 1 and "the weights cannot leave (" in said[0]
    assert len(watch.before) == 24 and not any(watch.before) and len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(prefix(module), expected, strict=True))


def test_systems_without_a_c_library_under_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_on_windows(name: str | None) -> Any:
        raise TypeError("argument of type 'NoneType' is not iterable")

    monkeypatch.setattr("lightning_freeze.cache.offload.ctypes", SimpleNamespace(CDLL=as_on_windows))
    said, watch = fit_and_listen()
    assert not said and watch.before[-1] > 0
