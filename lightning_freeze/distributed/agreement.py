"""One value for all ranks, so that all of them make the same decision."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch import Trainer
from torch import Tensor


def mean_over_ranks(trainer: Trainer, metric: Tensor | None) -> float | None:
    """The mean of a metric over the ranks that have it; must be called on all ranks.

    Ranks see different metrics unless they are logged with ``sync_dist=True``, and with ``rank_zero_only=True`` only
    one of them sees any. A decision by each rank on its own value would put the ranks into different phases.

    Args:
        trainer: The running trainer.
        metric: The value on this rank, ``None`` if it has none; of several elements, their mean counts.

    Returns:
        The same number on all ranks, ``None`` if no rank has one.
    """
    pair = torch.zeros(2, device=trainer.strategy.root_device, dtype=_dtype(trainer))
    if metric is not None:
        pair[0], pair[1] = metric.detach().to(pair).mean(), 1.0
    total, count = trainer.strategy.reduce(pair, reduce_op="sum").tolist()
    return total / count if count else None


def mean_of_each(trainer: Trainer, values: Mapping[str, float]) -> dict[str, float]:
    """The mean over the ranks of each of several numbers; must be called on all ranks, with the same names.

    Args:
        trainer: The running trainer.
        values: The numbers on this rank.
    """
    if trainer.world_size == 1 or not values:
        return dict(values)
    numbers = torch.tensor(list(values.values()), device=trainer.strategy.root_device, dtype=_dtype(trainer))
    total = trainer.strategy.reduce(numbers, reduce_op="sum") / trainer.world_size
    return dict(zip(values, total.tolist(), strict=True))


def _dtype(trainer: Trainer) -> torch.dtype:
    return torch.float32 if trainer.strategy.root_device.type == "mps" else torch.float64
