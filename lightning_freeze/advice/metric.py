"""The metric that decides, and whether larger or smaller values of it are better."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import LightningModule

from lightning_freeze.errors import ConfigurationError, suggest
from lightning_freeze.module import TransformerModule
from lightning_freeze.module.metric_direction import larger_is_better

Mode = Literal["min", "max"]


def monitor_of(module: LightningModule) -> str:
    """The main metric of a TransformerModule, else the loss.

    Args:
        module: The module.
    """
    return f"val_{module.task.monitor}" if isinstance(module, TransformerModule) else "val_loss"


def mode_of(monitor: str) -> Mode:
    """Whether larger or smaller values are better, by the name of the metric.

    Args:
        monitor: The name.

    Raises:
        ConfigurationError: If the name does not tell.
    """
    is_better = larger_is_better(monitor)
    if is_better is None:
        raise ConfigurationError(
            f"monitor={monitor!r}: the name does not tell if larger is better: expected mode='max' or mode='min'."
            f"{suggest(monitor, ('val_loss', 'val_accuracy'))}"
        )
    return "max" if is_better else "min"
