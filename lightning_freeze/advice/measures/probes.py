"""Linear probes in closed form: how well a ridge regression on some features predicts the targets."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_freeze.advice.measures.checks import checked_features

Target = Literal["class", "multilabel", "value"]

#: Ridge penalties to choose from, for features of unit variance, in multiples of the number of training examples.
PENALTIES = tuple(10.0**power for power in range(-6, 3))


@dataclass(frozen=True)
class ProbeScore:
    """How well a probe predicts examples that it was not fitted to.

    Attributes:
        mean: Mean score over the folds: accuracy, or R squared for numbers.
        error: Standard error of the mean over the folds.
    """

    mean: float
    error: float


def ridge_probe(features: Tensor, targets: Tensor, target: Target, folds: int = 5, seed: int = 0) -> ProbeScore:
    """Cross-validate a ridge regression; for classes, of the columns of zeros and ones, whose largest output wins.

    In each fold, features are scaled to unit variance and the penalty is chosen by leave-one-out errors, both on the
    training part alone. Everything is computed in closed form, so a probe takes as long as one singular value
    decomposition.

    Args:
        features: ``(examples, size)``.
        targets: Class indices ``(examples,)``, zeros and ones ``(examples, labels)``, or numbers ``(examples,)``.
        target: What the targets are.
        folds: Into how many parts the examples are split, 2 or more.
        seed: Of the split.

    Raises:
        ValueError: If a shape or a number is wrong, or there are fewer examples than folds.
    """
    if target == "class" and targets.ndim != 1:
        raise ValueError(f"class targets have the shape {tuple(targets.shape)}: expected (examples,).")
    if not 2 <= folds <= len(features):
        raise ValueError(f"folds={folds}: expected at least 2, and at most the {len(features)} examples.")
    classes = targets.long() if target == "class" else None
    columns = one_hot(classes) if classes is not None else targets
    features, columns = checked_features(features, columns)
    scores = []
    for held_out in _folds(len(features), classes, folds, seed):
        kept = ~held_out
        predicted = _fit_predict(features[kept], columns[kept], features[held_out])
        scores.append(_score(predicted, columns[held_out], target))
    return ProbeScore(statistics.fmean(scores), statistics.stdev(scores) / len(scores) ** 0.5)


def one_hot(classes: Tensor) -> Tensor:
    """Class indices as columns of zeros and ones, one for each class that occurs.

    Args:
        classes: ``(examples,)``.
    """
    columns: Tensor = classes[:, None] == classes.unique()[None]
    return columns.to(torch.float64)


def ridge_predict(features: Tensor, targets: Tensor, new: Tensor, penalty: float) -> Tensor:
    """Fit a ridge regression with an intercept that is not penalised, and predict.

    Args:
        features: ``(examples, size)``.
        targets: ``(examples, targets)``.
        new: ``(others, size)``.
        penalty: Of the squared norm of the coefficients, added to the sum of squared errors.
    """
    centre, offset = features.mean(0), targets.mean(0)
    left, singular, right = torch.linalg.svd(features - centre, full_matrices=False)
    shrunk = _inverse(singular, penalty)[:, None] * (left.T @ (targets - offset))
    predicted: Tensor = (new - centre) @ (right.T @ shrunk) + offset
    return predicted


def leave_one_out_error(features: Tensor, targets: Tensor, penalties: Sequence[float]) -> list[float]:
    """The mean squared error of each example under a ridge regression that is fitted to all others.

    Args:
        features: ``(examples, size)``.
        targets: ``(examples, targets)``.
        penalties: As for :func:`ridge_predict`.

    Returns:
        One error for each penalty.
    """
    centred = targets - targets.mean(0)
    left, singular, _ = torch.linalg.svd(features - features.mean(0), full_matrices=False)
    projected, squares, count = left.T @ centred, left**2, len(features)
    errors = []
    for penalty in penalties:
        share = singular * _inverse(singular, penalty)
        residual = centred - left @ (share[:, None] * projected)
        leverage = squares @ share + 1 / count  # the intercept is fitted too
        errors.append(float(((residual / (1 - leverage).clamp(min=1e-9)[:, None]) ** 2).mean()))
    return errors


def _fit_predict(features: Tensor, targets: Tensor, new: Tensor) -> Tensor:
    centre, scale = features.mean(0), features.std(0, correction=0)
    scale = torch.where(scale > 1e-12 * scale.max().clamp(min=1e-300), scale, torch.ones_like(scale))
    features, new = (features - centre) / scale, (new - centre) / scale
    penalties = [penalty * len(features) for penalty in PENALTIES]
    errors = leave_one_out_error(features, targets, penalties)
    return ridge_predict(features, targets, new, penalties[errors.index(min(errors))])


def _inverse(singular: Tensor, penalty: float) -> Tensor:
    """Of singular values under a penalty; 0 for those that are 0."""
    divisor = singular**2 + penalty
    return torch.where(divisor > 0, singular / divisor.clamp(min=1e-300), torch.zeros_like(singular))


def _folds(count: int, classes: Tensor | None, folds: int, seed: int) -> Iterator[Tensor]:
    """A mask of the held-out examples of each fold; each class is spread evenly over the folds."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if classes is not None:
        order = order[classes.to("cpu")[order].argsort(stable=True)]
    fold = torch.empty(count, dtype=torch.long)
    fold[order] = torch.arange(count) % folds
    for number in range(folds):
        yield fold == number


def _score(predicted: Tensor, targets: Tensor, target: Target) -> float:
    if target == "class":
        return float((predicted.argmax(1) == targets.argmax(1)).double().mean())
    if target == "multilabel":
        return float(((predicted >= 0.5) == (targets >= 0.5)).double().mean())
    total = ((targets - targets.mean(0)) ** 2).sum()
    return float(1 - ((targets - predicted) ** 2).sum() / total) if total > 0 else 0.0
