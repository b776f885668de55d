"""What all measurements of features require of their input."""

from __future__ import annotations

import torch
from torch import Tensor


def checked_features(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Features and targets in float64, the targets with one column each.

    Args:
        features: ``(examples, size)``.
        targets: ``(examples,)`` or ``(examples, targets)``.

    Raises:
        ValueError: If a shape is wrong, or a value is not finite.
    """
    if features.ndim != 2 or not features.shape[1]:
        raise ValueError(f"features have the shape {tuple(features.shape)}: expected (examples, size).")
    if targets.ndim not in (1, 2) or len(targets) != len(features):
        raise ValueError(
            f"targets have the shape {tuple(targets.shape)}: expected ({len(features)},) or ({len(features)}, targets)."
        )
    features, targets = features.to(torch.float64), targets.to(torch.float64)
    for name, values in (("features", features), ("targets", targets)):
        if not bool(values.isfinite().all()):
            raise ValueError(f"{name} hold NaN or infinite values: expected finite numbers.")
    return features, targets.reshape(len(targets), -1)
