"""How long a run lasts, as far as its Trainer knows before it begins."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning.pytorch import Trainer

from lightning_freeze.errors import ConfigurationError
from lightning_freeze.schedule.checks import pace_of
from lightning_freeze.schedule.triggers import Pace


@dataclass(frozen=True)
class RunLength:
    """The length of a run.

    Attributes:
        pace: How fast it goes.
        batches: Its training batches; ``None`` if it has no end.
        steps: Its optimizer steps; ``None`` if it has no end.
        note: What is assumed about it, empty if nothing is.
    """

    pace: Pace
    batches: int | None
    steps: int | None
    note: str = ""


def run_length(trainer: Trainer) -> RunLength:
    """The length of a run whose data loaders exist.

    Args:
        trainer: The trainer.

    Raises:
        ConfigurationError: The training data has no length, and nothing else says how long the run is.
    """
    found = trainer.estimated_stepping_batches
    steps = None if math.isinf(found) or found < 0 else int(found)
    per_step = trainer.accumulate_grad_batches
    if math.isinf(trainer.num_training_batches):
        if steps is None:
            raise ConfigurationError(
                "The training data has no length, so the length of the run is not known: give batches_per_epoch, "
                "limit_train_batches as a number of batches, or max_steps."
            )
        pace = pace_of(trainer, batches_per_epoch=steps * per_step)
        return RunLength(pace, steps * per_step, steps, "The training data has no length: one epoch is assumed.")
    pace = pace_of(trainer)
    if steps is None:
        return RunLength(pace, None, None)
    if not trainer.max_steps or trainer.max_steps < 0:
        return RunLength(pace, pace.batches_per_epoch * int(trainer.max_epochs or 1), steps)
    epochs, rest = divmod(steps, math.ceil(pace.batches_per_epoch / per_step))
    return RunLength(pace, epochs * pace.batches_per_epoch + rest * per_step, steps)
