"""A scheduler that has decayed to nothing by the time a layer unfreezes: the layer will hardly train."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_freeze.layers.wording import spans
from lightning_freeze.run_warnings.record import warn_in_run
from lightning_freeze.session.observer import Observer, PhaseChange
from lightning_freeze.session.session import Session

#: Share of the scheduler's peak below which a rate is next to nothing.
NEXT_TO_NOTHING = 0.01

#: Longest rest of a run whose rates are looked at step by step.
_MOST_STEPS = 100_000


def has_decayed(peak: float, ahead: Sequence[float]) -> bool:
    """Whether no rate that is still to come reaches 1% of the highest one so far.

    Args:
        peak: The highest rate so far.
        ahead: The present rate and those of the rest of the run.
    """
    return peak > 0 and max(ahead) < NEXT_TO_NOTHING * peak


class DecayedRate(Observer):
    """Compares the rates that newly unfrozen layers will have with the scheduler's peak, and warns once.

    Only where one optimizer steps under automatic optimization and the length of the run is known; otherwise the
    rates of the rest of the run cannot be known.

    Args:
        session: The running fit.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._is_running = False
        self._peaks: list[float] = []
        self._trained: set[Parameter] = set()

    def start_training(self) -> None:  # noqa: D102
        self._is_running = True  # finders try rates out before
        self._trained = self._trainable()

    def end_batch(self, batch_idx: int) -> None:  # noqa: D102
        if self._is_running and self._is_known():
            groups = self._session.trainer.optimizers[0].param_groups
            rates = [max(_rate(group), _rate(group, "initial_lr"), _rate(group, "max_lr")) for group in groups]
            known = [*self._peaks, *[0.0] * (len(rates) - len(self._peaks))]
            self._peaks = [max(pair) for pair in zip(rates, known, strict=False)]

    def change_phase(self, change: PhaseChange) -> None:  # noqa: D102
        trainable = self._trainable()
        fresh, self._trained = trainable - self._trained, trainable
        if not fresh or not self._peaks or not self._is_known():
            return
        groups = self._session.trainer.optimizers[0].param_groups
        affected = [i for i, g in enumerate(groups[: len(self._peaks)]) if fresh & set(g["params"])]
        low = [i for i in affected if has_decayed(self._peaks[i], [_rate(groups[i])])]
        if not low or len(low) < len(affected):
            return
        ahead = rates_ahead(self._session.trainer)
        if ahead is not None and all(has_decayed(self._peaks[i], [now[i] for now in ahead]) for i in low):
            self._warn(change, fresh, _rate(groups[low[0]]), self._peaks[low[0]])

    def _warn(self, change: PhaseChange, fresh: set[Parameter], now: float, peak: float) -> None:
        if not self._session.is_first("decayed rate"):
            return
        stack = self._session.stack
        names = [layer.name for layer in stack if fresh & set(layer.parameters())]
        step = self._session.trainer.global_step
        warn_in_run(
            self._session.trainer,
            f"Phase {change.phase + 1} of {len(change.plan)} unfreezes {spans(names, stack.names)} at step {step}, but "
            f"the scheduler has decayed the learning rate to {now:.3g}, less than 1% of its peak ({peak:.3g}), and "
            f"does not raise it again: they will hardly train. Unfreeze earlier, or use a scheduler that decays later.",
        )

    def _is_known(self) -> bool:
        trainer, module = self._session.trainer, self._session.module
        return module.automatic_optimization and len(trainer.optimizers) == 1 and bool(trainer.lr_scheduler_configs)

    def _trainable(self) -> set[Parameter]:
        return {parameter for parameter in self._session.module.parameters() if parameter.requires_grad}


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
    ahead = [[_rate(group) for group in twin.param_groups]]
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
                    ahead.append([_rate(group) for group in twin.param_groups])
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


def _rate(group: dict[str, Any], key: str = "lr") -> float:
    value = group.get(key)
    return 0.0 if value is None else float(value)
