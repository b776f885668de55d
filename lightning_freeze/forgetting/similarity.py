"""Comparisons of two sets of features for the same texts: pure functions, computed in double precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef
from torchmetrics.functional.pairwise import pairwise_cosine_similarity


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Return the linear centred kernel alignment of two sets of features.

    Kornblith et al., "Similarity of Neural Network Representations Revisited" (ICML 2019, arXiv:1905.00414). It is 1
    for features that differ by a rotation, a shift or a scale only, and near 0 for unrelated ones. With few texts
    beside the number of features it is biased upwards; use several times more texts than a handful.

    Args:
        first: ``(texts, features)``.
        second: ``(texts, other features)``.

    Returns:
        A number from 0 to 1; NaN where one set is constant.

    Raises:
        ValueError: The numbers of texts differ, or there are fewer than two.
    """
    _check(first, second, least=2)
    x, y = (features.double() - features.double().mean(0) for features in (first, second))
    if len(x) < max(x.shape[1], y.shape[1]):  # the same sums over texts rather than features
        x_gram, y_gram = x @ x.T, y @ y.T
        return float((x_gram * y_gram).sum() / (x_gram.norm() * y_gram.norm()))
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def l2_distance(first: Tensor, second: Tensor, relative: bool = True) -> float:
    """Return the mean Euclidean distance between the features of each text.

    Args:
        first: ``(texts, features)``, the original.
        second: ``(texts, features)``.
        relative: Whether to divide by the mean norm of the original features, so that layers can be compared.

    Raises:
        ValueError: The shapes differ.
    """
    _check(first, second, least=1)
    if first.shape != second.shape:
        raise ValueError(f"The features have shapes {tuple(first.shape)} and {tuple(second.shape)}, expected one.")
    distance = (second.double() - first.double()).norm(dim=1).mean()
    return float(distance / first.double().norm(dim=1).mean() if relative else distance)


def ranking_correlation(first: Tensor, second: Tensor) -> float:
    """Return how far two models agree on which texts are similar.

    For each text, all others are ranked by cosine similarity in either model. The result is the Spearman correlation
    of the two rankings, averaged over texts.

    Args:
        first: ``(texts, features)``.
        second: ``(texts, other features)``.

    Returns:
        A number from -1 to 1; 1 where no ranking has changed. NaN where features are not finite.

    Raises:
        ValueError: The numbers of texts differ, or there are fewer than three.
    """
    _check(first, second, least=3)
    if not _are_finite(first, second):
        return math.nan  # NaN has a rank too
    rankings = [_others(features) for features in (first, second)]
    return float(spearman_corrcoef(*(ranking.T.contiguous() for ranking in rankings)).mean())


def neighbour_agreement(first: Tensor, second: Tensor, neighbours: int = 10) -> float:
    """Return which share of the nearest neighbours of a text, by cosine similarity, two models have in common.

    Args:
        first: ``(texts, features)``.
        second: ``(texts, other features)``.
        neighbours: How many neighbours of each text count; at most all other texts.

    Returns:
        A number from 0 to 1, averaged over texts. Unrelated models agree on ``neighbours / (texts - 1)``.
        NaN where features are not finite.

    Raises:
        ValueError: The numbers of texts differ, there are fewer than two, or ``neighbours`` is below 1.
    """
    _check(first, second, least=2)
    if neighbours < 1:
        raise ValueError(f"neighbours is {neighbours}: expected at least 1.")
    if not _are_finite(first, second):
        return math.nan
    count = min(neighbours, len(first) - 1)
    one, other = (_similarities(features).topk(count).indices for features in (first, second))
    return float((one.unsqueeze(2) == other.unsqueeze(1)).any(2).double().mean())


def _are_finite(*features: Tensor) -> bool:
    return all(bool(each.isfinite().all()) for each in features)


def _similarities(features: Tensor) -> Tensor:
    similarities: Tensor = pairwise_cosine_similarity(features.double())
    return similarities.fill_diagonal_(-torch.inf)


def _others(features: Tensor) -> Tensor:
    """Return the similarities of each text to all others, ``(texts, texts - 1)``."""
    similarities = _similarities(features)
    count = len(similarities)
    return similarities[~torch.eye(count, dtype=torch.bool, device=similarities.device)].view(count, count - 1)


def _check(first: Tensor, second: Tensor, least: int) -> None:
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second) or len(first) < least:
        raise ValueError(
            f"The features have shapes {tuple(first.shape)} and {tuple(second.shape)}: expected (texts, features) for "
            f"the same texts, at least {least} of them."
        )
