"""A run that is too short for every layer to have a turn."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer

from lightning_freeze.run_warnings.record import warn_in_run


def warn_if_too_few_turns(owner: str, turns: int, interval: int, first: int, trainer: Trainer) -> None:
    """Warn, with the numbers, if a run ends before each layer has had a turn.

    Args:
        owner: Name of the callback.
        turns: How many turns it takes.
        interval: How many optimizer steps a turn lasts.
        first: The optimizer step at which the first turn began.
        trainer: The running trainer.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    total = trainer.estimated_stepping_batches
    if math.isinf(total) or total < 0:
        return
    last, available = (turns - 1) * interval, int(total) - first
    if last < available:
        return
    advice = "Train for longer"
    if interval > 1 and (shorter := (available - 1) // (turns - 1)) > 0:
        advice += f", or set interval={shorter} or less"
    warn_in_run(
        trainer,
        f"{owner} trains {turns} layers in turns of {interval} optimizer steps and reaches the last one after {last} "
        f"steps, but the run ends after {available}: some layers will never train. {advice}.",
    )
