"""The signal-to-noise ratio of weight matrices, and the matrices with the highest ones."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def signal_to_noise(matrix: Tensor) -> float:
    """The sum of the singular values above the noise, over that of the others, over the largest one.

    What random noise alone would give is the upper edge of the Marchenko-Pastur distribution, for a standard deviation
    that is estimated from the interquartile range of the singular values.

    Args:
        matrix: A weight matrix.

    Returns:
        The ratio, 0 or more; infinite for a matrix without noise.
    """
    values = torch.linalg.svdvals(matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32)))
    deviation = (torch.quantile(values, 0.75) - torch.quantile(values, 0.25)) / 1.349
    threshold = deviation * (1 + math.sqrt(min(matrix.shape) / max(matrix.shape)))
    signal, noise = float(values[values > threshold].sum()), float(values[values <= threshold].sum())
    if not signal:
        return 0.0
    # As published, a matrix all of whose values are signal has a noise of 1.
    noise = noise if bool((values <= threshold).any()) else 1.0
    return signal / noise / float(values[0]) if noise else math.inf


def highest(ratios: Mapping[str, Mapping[str, float]], top_percent: float) -> list[str]:
    """The matrices with the highest ratios of each type.

    Args:
        ratios: The ratio of each matrix, by its full name, by type.
        top_percent: How many of each type, in percent, rounded down.
    """
    found = []
    for matrices in ratios.values():
        ranked = sorted(matrices, key=lambda name: matrices[name], reverse=True)
        found += ranked[: int(len(ranked) * top_percent / 100)]
    return found
