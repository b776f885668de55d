"""The random number generators that a forward pass may use: whether it used any, and restoring an earlier state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class RandomState:
    """The state of every random number generator that a forward pass may draw from.

    Args:
        device: Where the pass runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._torch = torch.get_rng_state()
        self._accelerator = _module(device).get_rng_state(device) if _module(device) else None
        self._python = random.getstate()
        self._numpy: Any = np.random.get_state()

    def has_advanced(self) -> bool:
        """Whether any random number has been drawn since this state was taken."""
        now = RandomState(self._device)
        same = torch.equal(self._torch, now._torch) and self._python == now._python
        if same and self._accelerator is not None and now._accelerator is not None:
            same = torch.equal(self._accelerator, now._accelerator)
        return not (same and self._numpy[2] == now._numpy[2] and np.array_equal(self._numpy[1], now._numpy[1]))

    def restore(self) -> None:
        """Set all generators to this state."""
        torch.set_rng_state(self._torch)
        if self._accelerator is not None:
            _module(self._device).set_rng_state(self._accelerator, self._device)
        random.setstate(self._python)
        np.random.set_state(self._numpy)


def _module(device: torch.device) -> Any:
    return getattr(torch, device.type) if device.type in ("cuda", "xpu") else None


@contextmanager
def preserved_random_state(device: torch.device) -> Iterator[None]:
    """Restore the random number generators on exit."""
    before = RandomState(device)
    try:
        yield
    finally:
        before.restore()
