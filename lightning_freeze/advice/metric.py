"""The metric that decides, and whether larger or smaller values of it are better."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import LightningModule

from lightning_freeze.errors import ConfigurationError, suggest
from lightning_freeze.module import TransformerModule

Mode = Literal["min", "max"]

_LARGER = ("acc", "f1", "pearson", "spearman", "auroc", "auc", "precision", "recall", "r2", "bleu", "rouge", "map")
_SMALLER = ("loss", "perplexity", "mse", "mae", "error", "wer", "cer")


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
    name = monitor.lower()
    larger, smaller = any(word in name for word in _LARGER), any(word in name for word in _SMALLER)
    if larger == smaller:
        raise ConfigurationError(
            f"monitor={monitor!r}: the name does not tell if larger is better: expected mode='max' or mode='min'."
            f"{suggest(monitor, ('val_loss', 'val_accuracy'))}"
        )
    return "max" if larger else "min"
