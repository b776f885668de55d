"""One value for all ranks, so that all of them make the same decision."""

from __future__ import annotations

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
    device = trainer.strategy.root_device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    pair = torch.zeros(2, device=device, dtype=dtype)
    if metric is not None:
        pair[0], pair[1] = metric.detach().to(device, dtype).mean(), 1.0
    total, count = trainer.strategy.reduce(pair, reduce_op="sum").tolist()
    return total / count if count else None
