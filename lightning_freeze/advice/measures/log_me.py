"""LogME: a transferability score, the evidence of a linear model on the features, maximised over its priors.

You, Liu, Wang and Long, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning", ICML 2021
(arXiv:2102.11005); the fixed point is that of "Ranking and Tuning Pre-trained Models" (arXiv:2110.10545).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_freeze.advice.measures.checks import checked_features

_MOST_STEPS = 100
_TOLERANCE = 1e-6
# Keeps both precisions finite where a target is fitted exactly, or not at all; as in the published code.
_EPSILON = 1e-5


def log_me(features: Tensor, targets: Tensor) -> float:
    """The score: the mean over all targets of the maximum log evidence per example. Larger is better.

    The evidence of ``y = F w + noise`` with Gaussian ``w`` (precision alpha) and noise (precision beta) is maximised
    over alpha and beta by a fixed point. The features are taken as they are: the score is for comparing features of one
    data set, not data sets with one another. Where the features have a lower rank than columns, the published fixed
    point counts some of the determinant twice; this function follows the formula of the paper.

    Args:
        features: ``(examples, size)``.
        targets: ``(examples, targets)`` or ``(examples,)``: numbers, or for classes zeros and ones with one column for
            each class.

    Raises:
        ValueError: If a shape is wrong, or a value is not finite.
    """
    features, targets = checked_features(features, targets)
    left, singular, _ = torch.linalg.svd(features, full_matrices=False)
    is_kept = singular > singular.max() * max(features.shape) * torch.finfo(torch.float64).eps
    squares, projected = singular[is_kept] ** 2, (left[:, is_kept].T @ targets) ** 2
    norms = (targets**2).sum(0)
    scores = [_max_evidence(squares, projected[:, k], norms[k], len(features)) for k in range(targets.shape[1])]
    return sum(scores) / len(scores)


def _max_evidence(squares: Tensor, projected: Tensor, norm: Tensor, examples: int) -> float:
    """The maximum log evidence of one target, divided by the number of examples.

    Args:
        squares: Squared singular values of the features, those that are not 0.
        projected: Squared coordinates of the target along the left singular vectors.
        norm: Squared norm of the target.
        examples: The number of examples.
    """
    alpha = beta = torch.ones((), dtype=torch.float64)
    outside = (norm - projected.sum()).clamp(min=0)
    for _ in range(_MOST_STEPS):
        ratio = alpha / beta
        gamma = (squares / (squares + ratio)).sum()
        weights = (squares * projected / (ratio + squares) ** 2).sum()
        residual = (projected / (1 + squares / ratio) ** 2).sum() + outside
        alpha = (gamma / (weights + _EPSILON)).clamp(min=_EPSILON)
        beta = (examples - gamma).clamp(min=_EPSILON) / (residual + _EPSILON)
        if abs(alpha / beta - ratio) <= _TOLERANCE * ratio:
            break
    ratio = alpha / beta
    weights = (squares * projected / (ratio + squares) ** 2).sum()
    residual = (projected / (1 + squares / ratio) ** 2).sum() + outside
    # Directions without features add log(alpha) to the prior and to the determinant, so they cancel.
    evidence = (
        len(squares) * alpha.log()
        + examples * beta.log()
        - (alpha + beta * squares).log().sum()
        - beta * residual
        - alpha * weights
        - examples * math.log(2 * math.pi)
    ) / 2
    return float(evidence) / examples
