"""Keeps Lightning's ``EarlyStopping`` from ending a run because a phase has plateaued."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from lightning.pytorch.callbacks import EarlyStopping

_HOOKS = ("on_validation_end", "on_train_epoch_end")


class PatienceGuard:
    """Gives an ``EarlyStopping`` endless patience for as long as phases remain.

    Its other criteria (a threshold, divergence, a value that is not finite) still stop the run. Only what its two
    public hooks see is changed, and only while they run, so that its state in a checkpoint is its own.

    Args:
        stopping: The callback to guard.
        phases_remain: Asked at each of its checks.
    """

    def __init__(self, stopping: EarlyStopping, phases_remain: Callable[[], bool]) -> None:
        self.stopping = stopping
        self.phases_remain = phases_remain

    def install(self) -> None:
        """Guard from now on."""
        for hook in _HOOKS:
            setattr(self.stopping, hook, self._patiently(getattr(self.stopping, hook)))

    def remove(self) -> None:
        """Give the callback its own hooks back."""
        for hook in _HOOKS:
            vars(self.stopping).pop(hook, None)

    def restart(self) -> None:
        """Count its patience from here."""
        self.stopping.wait_count = 0

    def _patiently(self, check: Callable[..., None]) -> Callable[..., None]:
        def hook(*args: Any, **kwargs: Any) -> None:
            patience = self.stopping.patience
            if self.phases_remain():
                self.stopping.patience = sys.maxsize
            try:
                check(*args, **kwargs)
            finally:
                self.stopping.patience = patience

        return hook
