"""The rates that the schedulers of a run will set, seen on copies that are stepped to its end."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.optim import Optimizer

#: Longest rest of a run whose rates are looked at step by step.
_MOST_STEPS = 100_000


def can_look_ahead(trainer: Trainer) -> bool:
    """Whether there are schedulers, of one optimizer under automatic optimization.

    Args:
        trainer: A running trainer.
    """
    is_automatic = trainer.lightning_module.automatic_optimization
    return is_automatic and len(trainer.optimizers) == 1 and bool(trainer.lr_scheduler_configs)


def rates_ahead(trainer: Trainer) -> list[list[float]] | None:
    """The rate of each parameter group now and after each later step of its schedulers.

    The schedulers are copied; those that wait for a metric never raise a rate, so they are left out.

    Args:
        trainer: A running trainer with one optimizer.

    Returns:
        ``None`` if it cannot be known: the run has no known end, or a scheduler cannot be copied.
    """
    twin = _twin(trainer.optimizers[0])
    # A schedule may be a method of the module, which is not to be copied.
    shared: dict[int, Any] = {id(x): x for x in (trainer, trainer.lightning_module)} | {id(trainer.optimizers[0]): twin}
    ahead = [[rate_of(group) for group in twin.param_groups]]
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau:
            continue
        left = _calls_left(trainer, config.interval) // max(1, config.frequency)
        if not 0 <= left <= _MOST_STEPS:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scheduler: Any = copy.deepcopy(config.scheduler, dict(shared))
                for _ in range(int(left)):
                    scheduler.step()
                    ahead.append([rate_of(group) for group in twin.param_groups])
        except Exception:  # a scheduler of the user's may hold anything, and nothing is known of it then
            return None
    return ahead


def _calls_left(trainer: Trainer, interval: str) -> float:
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps) or steps < 0:
        return math.inf
    left = max(0, steps - trainer.global_step)
    if interval == "step":
        return left
    per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
    return math.ceil(left / math.ceil(per_epoch)) if math.isfinite(per_epoch) else 0


def _twin(optimizer: Optimizer) -> Optimizer:
    """An optimizer over stand-ins with the settings of the groups of another one."""
    twin = torch.optim.SGD([{"params": [torch.zeros(1)]} for _ in optimizer.param_groups], lr=0.0)
    for mine, other in zip(twin.param_groups, optimizer.param_groups, strict=True):
        mine.update({key: copy.deepcopy(value) for key, value in other.items() if key != "params"})
    return twin


def rate_of(group: dict[str, Any], key: str = "lr") -> float:
    """The rate of a parameter group, 0 where it has none.

    Args:
        group: The group.
        key: Under which name the rate is stored.
    """
    value = group.get(key)
    return 0.0 if value is None else float(value)
