"""Metrics that do nothing. Many read the values of their input, which a fake tensor does not have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection


def has_metrics(module: nn.Module) -> bool:
    """Whether a module has metrics of torchmetrics."""
    return any(isinstance(each, Metric) for each in module.modules())


@contextmanager
def silent_metrics(module: nn.Module) -> Iterator[None]:
    """Have the metrics of a module return zero in this context, and keep what they have seen.

    Args:
        module: The module.
    """
    metrics = [each for each in module.modules() if isinstance(each, (Metric, MetricCollection))]
    given = [dict(vars(each)) for each in metrics]
    try:
        for metric in metrics:
            zero = _zeros_of(metric) if isinstance(metric, MetricCollection) else _zero
            vars(metric).update(forward=zero, compute=zero, update=_nothing)
        yield
    finally:
        for metric, own in zip(metrics, given, strict=True):
            for name in ("forward", "compute", "update"):
                vars(metric).pop(name)
            vars(metric).update(own)


def _zero(*_: Any, **__: Any) -> Tensor:
    return torch.zeros(())


def _zeros_of(metrics: MetricCollection) -> Any:
    def compute(*_: Any, **__: Any) -> dict[str, Tensor]:
        return {str(name): torch.zeros(()) for name in metrics}

    return compute


def _nothing(*_: Any, **__: Any) -> None: ...
