"""The metrics that a schedule watches, as every rank sees them."""

from __future__ import annotations

import math

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_freeze.distributed import mean_over_ranks
from lightning_freeze.errors import ConfigurationError, suggest
from lightning_freeze.session.session import Session


def read_metric(session: Session, owner: str, name: str) -> float:
    """The value of a logged metric, the mean over all ranks, so that they all decide alike.

    Args:
        session: The running fit.
        owner: Name of the callback that watches.
        name: Name of the metric.

    Raises:
        ConfigurationError: If the module has not logged it.
    """
    metrics = session.trainer.callback_metrics
    value = mean_over_ranks(session.trainer, metrics.get(name))
    if value is None:
        part = next((f" Did you mean {other!r}?" for other in metrics if other.startswith(f"{name}/")), "")
        raise ConfigurationError(
            f"{owner} watches {name!r}, which the module has not logged. It has logged: "
            f"{', '.join(sorted(metrics)) or 'nothing'}.{part or suggest(name, metrics)}"
        )
    if not math.isfinite(value) and session.first(f"not finite: {name}"):
        rank_zero_warn(f"{owner} watches {name!r}, which is {value}; this never counts as an improvement.")
    return value
