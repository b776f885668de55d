"""The stand-in that a user's scheduler drives while the real groups are split per layer."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer


class BaseRates(Optimizer):
    """The user's own parameter groups, without parameters, for the user's scheduler to drive.

    It takes no step and has no state. ``LearningRateMonitor`` shows its rates as ``lr-BaseRates``: the user's rate
    before any layer's factor.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        # No super().__init__: it refuses groups without parameters.
        self.real = optimizer
        self.defaults = dict(optimizer.defaults)
        self.state = defaultdict(dict)
        self.param_groups = [
            {"params": [], **{k: copy.deepcopy(v) for k, v in group.items() if k not in ("params", "param_names")}}
            for group in optimizer.param_groups
        ]

    @property
    def step(self) -> Any:
        """The real optimizer's step: schedulers only look at whether it was called."""
        return self.real.step

    @property
    def _opt_called(self) -> bool:
        return getattr(self.real, "_opt_called", False)

    def __repr__(self) -> str:
        return f"BaseRates({type(self.real).__name__})"


def redirect(scheduler: Any, optimizer: Optimizer, base: BaseRates, seen: set[int] | None = None) -> None:
    """Have a scheduler, and those nested in it, drive the stand-in instead of the optimizer."""
    # Schedulers nest (SequentialLR, ChainedScheduler, third-party warm-ups) under no common attribute name.
    seen = set() if seen is None else seen
    if id(scheduler) in seen:
        return
    seen.add(id(scheduler))
    if getattr(scheduler, "optimizer", None) is optimizer:
        scheduler.optimizer = base
    for value in list(getattr(scheduler, "__dict__", {}).values()):
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if hasattr(item, "optimizer") and hasattr(item, "step") and not isinstance(item, (Optimizer, type)):
                redirect(item, optimizer, base, seen)


def attached(module: Any, optimizers: Sequence[Optimizer]) -> list[Any]:
    """The schedulers of some optimizers that a module keeps in its attributes, in lists and maps too."""
    found: list[Any] = []
    for value in vars(module).values():
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        found += [
            item
            for item in items
            if hasattr(item, "step") and any(getattr(item, "optimizer", None) is held for held in optimizers)
        ]
    return found
