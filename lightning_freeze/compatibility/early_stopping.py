"""Keeps Lightning's ``EarlyStopping`` from ending a run because a phase has plateaued."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from lightning.pytorch.callbacks import EarlyStopping

_HOOKS = ("on_validation_end", "on_train_epoch_end")


class PatienceGuard:
    """Gives an ``EarlyStopping`` unlimited patience as long as phases remain.

    Its other criteria (a threshold, divergence, a value that is not finite) still stop the run. The
    patience is changed only while its two public hooks run, so its state in a checkpoint is unchanged.

    Args:
        stopping: The callback to guard.
        phases_remain: Called at each check; returns whether phases remain.
    """

    def __init__(self, stopping: EarlyStopping, phases_remain: Callable[[], bool]) -> None:
        self.stopping = stopping
        self.phases_remain = phases_remain

    def install(self) -> None:
        """Start guarding the callback."""
        for hook in _HOOKS:
            setattr(self.stopping, hook, self._with_unlimited_patience(getattr(self.stopping, hook)))

    def remove(self) -> None:
        """Restore the callback's own hooks."""
        for hook in _HOOKS:
            vars(self.stopping).pop(hook, None)

    def restart(self) -> None:
        """Restart the count of validations without improvement."""
        self.stopping.wait_count = 0

    def _with_unlimited_patience(self, check: Callable[..., None]) -> Callable[..., None]:
        def hook(*args: Any, **kwargs: Any) -> None:
            patience = self.stopping.patience
            if self.phases_remain():
                self.stopping.patience = sys.maxsize
            try:
                check(*args, **kwargs)
            finally:
                self.stopping.patience = patience

        return hook
