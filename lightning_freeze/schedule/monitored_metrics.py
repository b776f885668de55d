"""The metrics that a schedule watches, as every rank sees them."""

from __future__ import annotations

import math
from collections.abc import Callable

from lightning.pytorch import Trainer

from lightning_freeze.distributed import mean_over_ranks
from lightning_freeze.errors import ConfigurationError, suggest
from lightning_freeze.run_warnings.record import warn_in_run


def read_metric(trainer: Trainer, owner: str, name: str, is_first: Callable[[str], bool]) -> float:
    """The value of a logged metric, as the mean over all ranks, so that all ranks make the same decision.

    Args:
        trainer: The running trainer.
        owner: Name of the callback that watches.
        name: Name of the metric.
        is_first: Returns whether a topic comes up for the first time in this run.

    Raises:
        ConfigurationError: If the module has not logged it.
    """
    metrics = trainer.callback_metrics
    value = mean_over_ranks(trainer, metrics.get(name))
    if value is None:
        part = next((f" Did you mean {other!r}?" for other in metrics if other.startswith(f"{name}/")), "")
        raise ConfigurationError(
            f"{owner} watches {name!r}, which the module has not logged. It has logged: "
            f"{', '.join(sorted(metrics)) or 'nothing'}.{part or suggest(name, metrics)}"
        )
    if not math.isfinite(value) and is_first(f"not finite: {name}"):
        warn_in_run(trainer, f"{owner} watches {name!r}, which is {value}; this never counts as an improvement.")
    return value
