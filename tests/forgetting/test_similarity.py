"""Comparisons of features, against numbers computed by hand and by numpy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lightning_freeze.forgetting import l2_distance, linear_cka, neighbour_agreement, ranking_correlation


def features(count: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def cka_by_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """The definition in the paper: HSIC of centred Gram matrices, normalised."""
    count = len(x)
    centre = np.eye(count) - 1 / count
    k, l = centre @ (x @ x.T) @ centre, centre @ (y @ y.T) @ centre  # noqa: E741
    return float((k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum()))


@pytest.mark.parametrize(("count", "sizes"), [(40, (5, 7)), (6, (20, 9))])
def test_linear_cka_is_what_the_paper_defines(count: int, sizes: tuple[int, int]) -> None:
    x, y = features(count, sizes[0], 0), features(count, sizes[1], 1)
    y[:, :3] += x[:, :3]
    expected = cka_by_hsic(x.double().numpy(), y.double().numpy())
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-9)
    assert 0 < expected < 1


def test_linear_cka_by_hand() -> None:
    # Centred: x = (-1, 0, 1), y = (-1, 2, -1); x.y = 0. And z = (1, 0, -1), so x.z = -2.
    x, y, z = (torch.tensor(values).unsqueeze(1) for values in ([0.0, 1.0, 2.0], [0.0, 3.0, 0.0], [1.0, 0.0, -1.0]))
    assert linear_cka(x, y) == pytest.approx(0)
    assert linear_cka(x, z) == pytest.approx(1)
    # |x.(y + x)|^2 = 4, |x|^2 = 2, |y + x|^2 = 8: 4 / 16.
    assert linear_cka(x, y + x) == pytest.approx(4 / 16)


def test_linear_cka_does_not_see_rotation_shift_and_scale() -> None:
    x = features(30, 4, 0)
    rotation = torch.linalg.qr(features(4, 4, 1)).Q
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-6)
    assert l2_distance(x, x @ rotation) > 0.5


def test_l2_distance_by_hand() -> None:
    x, y = torch.tensor([[3.0, 4.0], [0.0, 5.0]]), torch.tensor([[3.0, 1.0], [4.0, 5.0]])
    assert l2_distance(x, y, relative=False) == pytest.approx((3 + 4) / 2)
    assert l2_distance(x, y) == pytest.approx(3.5 / 5)


def test_rankings_by_hand() -> None:
    """Unit vectors at four angles. Moving one of them changes the rankings of some texts only."""

    def at(*degrees: float) -> torch.Tensor:
        angles = torch.deg2rad(torch.tensor(degrees))
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    before, after = at(0, 10, 30, 70), at(0, 10, 30, -25)
    # Nearest first. Before: 0: 1 2 3, 1: 0 2 3, 2: 1 0 3, 3: 2 1 0. After: 0: 1 3 2, 1: 0 2 3, 2: 1 0 3, 3: 0 1 2.
    # Spearman of three ranks: one neighbouring swap 0.5, reversed -1, equal 1.
    assert ranking_correlation(before, after) == pytest.approx((0.5 + 1 + 1 - 1) / 4, abs=1e-5)
    assert neighbour_agreement(before, after, neighbours=1) == pytest.approx(3 / 4)
    # Two nearest: 0: {1, 2} and {1, 3}; 3: {2, 1} and {0, 1}.
    assert neighbour_agreement(before, after, neighbours=2) == pytest.approx((0.5 + 1 + 1 + 0.5) / 4)
    assert neighbour_agreement(before, after, neighbours=9) == 1.0
    assert ranking_correlation(before, 2 * before) == pytest.approx(1, abs=1e-5)


def test_unrelated_features_agree_by_chance_only() -> None:
    x, y = features(200, 16, 0), features(200, 16, 1)
    assert abs(ranking_correlation(x, y)) < 0.02
    assert neighbour_agreement(x, y) == pytest.approx(10 / 199, abs=0.02)


@pytest.mark.parametrize("function", [linear_cka, l2_distance, ranking_correlation, neighbour_agreement])
def test_features_of_different_texts_are_refused(function: object) -> None:
    with pytest.raises(ValueError, match=r"shapes \(4, 2\) and \(5, 2\): expected \(texts, features\)"):
        function(features(4, 2, 0), features(5, 2, 0))  # type: ignore[operator]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("function", [linear_cka, l2_distance, ranking_correlation, neighbour_agreement])
def test_features_that_are_not_finite_have_no_similarity(function: Callable[..., float], value: float) -> None:
    known = features(12, 4, 0)
    diverged = torch.full_like(known, value)
    assert not math.isfinite(function(known, diverged))
    assert math.isnan(function(diverged, diverged))
