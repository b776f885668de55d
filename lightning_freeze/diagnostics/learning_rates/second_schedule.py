"""A scheduler beside a strategy that moves the rates over the whole run: their factors multiply."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_freeze.diagnostics.learning_rates.rates_ahead import can_look_ahead, rates_ahead
from lightning_freeze.run_warnings.record import warn_in_run
from lightning_freeze.session.observer import Observer
from lightning_freeze.session.session import Session


def is_constant(ahead: Sequence[Sequence[float]]) -> bool:
    """Whether a scheduler leaves the rate of every parameter group as it is.

    Args:
        ahead: The rates of the groups, before the first and after each later step of the scheduler.
    """
    return all(math.isclose(rate, first) for now in ahead for rate, first in zip(now, ahead[0], strict=True))


class SecondSchedule(Observer):
    """Looks at the schedulers of a run in which a strategy has a schedule of its own; warns once.

    Only where one optimizer steps under automatic optimization and the length of the run is known. Schedulers that wait
    for a metric are left out: nobody knows what they will do.

    Args:
        session: The running fit, when all of its members have joined.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._names = [type(m).__name__ for m in session.members if getattr(m, "has_lr_schedule", False)]

    def start_training(self) -> None:
        """Look ahead at the first start of a run, now that the schedulers exist."""
        trainer = self._session.trainer
        if not self._names or trainer.global_step or not can_look_ahead(trainer):
            return
        ahead = (rates_ahead(trainer) or [])[:-1]  # nothing trains at the rates after the last step of the run
        if ahead and not is_constant(ahead) and self._session.is_first("second schedule"):
            schedulers = [type(c.scheduler).__name__ for c in trainer.lr_scheduler_configs if not c.reduce_on_plateau]
            warn_in_run(
                trainer,
                f"{self._names[0]} moves the learning rates over the whole run, and a scheduler "
                f"({', '.join(dict.fromkeys(schedulers))}) multiplies with it, so that layers train at other rates "
                "than either means. Expected an optimizer without a scheduler (TransformerModule: leave lr_scheduler "
                "out).",
            )
