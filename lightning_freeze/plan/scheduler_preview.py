"""The user's learning rate schedulers, stepped as the run would, to see the rates at a later batch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Trainer

from lightning_freeze.schedule.triggers import Pace

#: At how many batches of a phase the rates are looked at, besides those at which a parameter group has its highest.
_STOPS = 200


class SchedulerPreview:
    """Steps the schedulers of a fit that is only planned; schedulers that wait for a metric do not change.

    Args:
        trainer: The trainer, whose schedulers exist.
        pace: How fast the run goes.
    """

    def __init__(self, trainer: Trainer, pace: Pace) -> None:
        self._configs = [config for config in trainer.lr_scheduler_configs if not config.reduce_on_plateau]
        self._groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups if "lr" in group]
        # What `trainer.global_step` reads; rates that follow the steps of the run depend on it.
        self._steps: Any = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
        self._pace = pace
        self._batch = 0

    def during(self, first: int, last: int | None) -> Iterator[None]:
        """Set the rates of all parameter groups to those at several batches of a phase, the highest ones among them.

        Args:
            first: Its first batch, counted over the whole run; never before those of an earlier phase.
            last: The batch before which it ends; ``None`` if it is unknown.
        """
        end = first + 1 if last is None else last
        rates = []
        for batch in range(first, end if self._configs else first + 1):
            self._advance(batch)
            rates.append([group["lr"] for group in self._groups])
        stops = {*range(first, end, math.ceil((end - first) / _STOPS)), end - 1}
        for index, _ in enumerate(self._groups):
            highest = max(range(len(rates)), key=lambda batch: float(rates[batch][index] or 0))
            stops.add(first + highest)
        for batch in sorted(stops):
            self._set(rates[min(batch - first, len(rates) - 1)], batch)
            yield
        self._set(rates[-1], 0)

    def _set(self, rates: list[Any], batch: int) -> None:
        for group, rate in zip(self._groups, rates, strict=True):
            group["lr"] = rate
        self._steps.completed = self._steps_before(batch)

    def _steps_before(self, batch: int) -> int:
        epochs, within = divmod(batch, self._pace.batches_per_epoch)
        per_epoch = math.ceil(self._pace.batches_per_epoch / self._pace.batches_per_step)
        return epochs * per_epoch + within // self._pace.batches_per_step

    def _advance(self, batch: int) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step")
            warnings.filterwarnings("ignore", message=".*The epoch parameter in `scheduler.step")
            for ended in range(self._batch + 1, batch + 1):
                self._end_batch(ended)
        self._batch = max(self._batch, batch)

    def _end_batch(self, ended: int) -> None:
        """Step the schedulers that are due after a batch.

        Args:
            ended: How many batches of the run have ended.
        """
        epochs, within = divmod(ended, self._pace.batches_per_epoch)
        ends_epoch = within == 0
        in_epoch = self._pace.batches_per_epoch if ends_epoch else within
        takes_step = ends_epoch or in_epoch % self._pace.batches_per_step == 0
        for config in self._configs:
            if config.interval == "epoch":
                is_due = ends_epoch and epochs % config.frequency == 0
            else:  # the frequency counts batches in the epoch, whether the optimizer steps in them or not
                is_due = takes_step and in_epoch % config.frequency == 0
            if is_due:
                config.scheduler.step()  # type: ignore[call-arg]
