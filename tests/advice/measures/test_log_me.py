from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_freeze.advice.measures.log_me import log_me
from lightning_freeze.advice.measures.probes import one_hot


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def evidence(features: Tensor, target: Tensor, alpha: float, beta: float) -> float:
    """The log evidence per example as the density of the target, which is Gaussian once the weights are integrated."""
    covariance = torch.eye(len(features), dtype=torch.float64) / beta + features @ features.T / alpha
    gaussian = torch.distributions.MultivariateNormal(torch.zeros_like(target), covariance)
    return float(gaussian.log_prob(target)) / len(features)


def best_evidence(features: Tensor, target: Tensor) -> float:
    """The largest evidence on a fine grid, without any fixed point."""
    alphas, betas = torch.logspace(-3, 4, 141).tolist(), torch.logspace(-2, 3, 101).tolist()
    left, singular, _ = torch.linalg.svd(features, full_matrices=True)
    squares = torch.zeros(len(features), dtype=torch.float64)
    squares[: len(singular)] = singular**2
    projected = (left.T @ target) ** 2
    best = -float("inf")
    for alpha in alphas:
        variances = torch.tensor(betas, dtype=torch.float64).reciprocal()[:, None] + squares[None] / alpha
        log = -0.5 * (projected / variances + variances.log() + torch.log(torch.tensor(2 * torch.pi))).sum(1)
        best = max(best, float(log.max()))
    return best / len(features)


@pytest.mark.parametrize(("examples", "size"), [(60, 8), (20, 30)])
def test_it_is_the_largest_evidence_of_the_linear_model(examples: int, size: int) -> None:
    features = normal(examples, size, seed=0)
    target = features @ normal(size, seed=1) * 0.3 + 0.5 * normal(examples, seed=2)
    found = log_me(features, target)
    assert found == pytest.approx(best_evidence(features, target), abs=2e-3)
    assert evidence(features, target, alpha=1.0, beta=1.0) < found


def test_columns_without_content_change_nothing() -> None:
    features = normal(50, 6, seed=3)
    classes = (features[:, 0] > 0).long()
    wider = torch.cat([features, torch.zeros(50, 4, dtype=torch.float64)], 1)
    assert log_me(wider, one_hot(classes)) == pytest.approx(log_me(features, one_hot(classes)), abs=1e-9)


def test_the_score_of_several_targets_is_their_mean() -> None:
    features, targets = normal(40, 5, seed=4), normal(40, 3, seed=5)
    alone = [log_me(features, targets[:, k]) for k in range(3)]
    assert log_me(features, targets) == pytest.approx(sum(alone) / 3)


def test_features_that_know_the_classes_score_higher() -> None:
    classes = torch.arange(90) % 3
    noise = normal(90, 10, seed=6)
    informed = noise + 2 * one_hot(classes) @ normal(3, 10, seed=7)
    assert log_me(informed, one_hot(classes)) > log_me(noise, one_hot(classes)) + 0.1


# What the published code (thuml/LogME, the fixed point) returns for these features and targets. It stops at a relative
# change of 1e-3.
def features_of_the_published_code() -> Tensor:
    grid = torch.arange(30 * 4, dtype=torch.float64).reshape(30, 4)
    return torch.sin(grid * 0.37) + 0.1 * torch.cos(grid * grid * 0.011)


def test_it_agrees_with_the_published_code_on_classes_and_on_numbers() -> None:
    features = features_of_the_published_code()
    classes = torch.arange(30) % 3
    numbers = features @ torch.tensor([[1.0], [-0.5], [0.25], [0.0]], dtype=torch.float64) + torch.sin(
        torch.arange(30, dtype=torch.float64)[:, None] * 1.7
    )
    assert log_me(features, one_hot(classes)) == pytest.approx(-0.87038, abs=1e-3)
    assert log_me(features, numbers) == pytest.approx(-1.18832, abs=1e-3)


@pytest.mark.parametrize(
    "features", [torch.zeros(10, 3), torch.ones(10, 3), torch.full((10, 3), 1e-20), torch.full((10, 3), 1e12)]
)
def test_features_that_say_nothing_have_a_finite_score(features: Tensor) -> None:
    score = log_me(features, one_hot(torch.arange(10) % 2))
    assert score == score
    assert abs(score) < 1e3


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"features have the shape \(3,\): expected \(examples, size\)"):
        log_me(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"targets have the shape \(4,\): expected \(3,\) or \(3, targets\)"):
        log_me(torch.zeros(3, 2), torch.zeros(4))
    with pytest.raises(ValueError, match="features hold NaN"):
        log_me(torch.full((3, 2), float("nan")), torch.zeros(3))
