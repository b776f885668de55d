"""The user's learning rate schedulers, stepped as the run would, to see the rates at a later batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from lightning.pytorch import Trainer

from lightning_freeze.schedule.triggers import Pace

#: At how many batches of a phase the rates are looked at.
_STOPS = 200


class SchedulerPreview:
    """Steps the schedulers of a fit that is only planned; schedulers that wait for a metric do not change.

    Args:
        trainer: The trainer, whose schedulers exist.
        pace: How fast the run goes.
    """

    def __init__(self, trainer: Trainer, pace: Pace) -> None:
        self._configs = [config for config in trainer.lr_scheduler_configs if not config.reduce_on_plateau]
        self._pace = pace
        self._batch = 0

    def during(self, first: int, last: int | None) -> Iterator[None]:
        """Stop at several batches of a phase, its first and its last one among them.

        Args:
            first: Its first batch, counted over the whole run; never before those of an earlier phase.
            last: The batch before which it ends; ``None`` if it is unknown.
        """
        end = first + 1 if last is None or not self._configs else last
        every = max(1, (end - first) // _STOPS)
        for batch in [*range(first, end, every), end - 1]:
            self._advance(batch)
            yield

    def _advance(self, batch: int) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step")
            warnings.filterwarnings("ignore", message=".*The epoch parameter in `scheduler.step")
            for ended in range(self._batch + 1, batch + 1):
                self._end_batch(ended)
        self._batch = max(self._batch, batch)

    def _end_batch(self, ended: int) -> None:
        epoch, within = divmod(ended, self._pace.batches_per_epoch)
        ends_epoch = within == 0
        takes_step = ends_epoch or within % self._pace.batches_per_step == 0
        per_epoch = -(-self._pace.batches_per_epoch // self._pace.batches_per_step)
        steps = epoch * per_epoch if ends_epoch else epoch * per_epoch + within // self._pace.batches_per_step
        for config in self._configs:
            if config.interval == "epoch":
                is_due = ends_epoch and epoch % config.frequency == 0
            else:
                is_due = takes_step and steps % config.frequency == 0
            if is_due:
                config.scheduler.step()  # type: ignore[call-arg]
