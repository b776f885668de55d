from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_freeze.advice.measures.probes import (
    PENALTIES,
    leave_one_out_error,
    one_hot,
    ridge_predict,
    ridge_probe,
)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("examples", "size"), [(40, 6), (12, 30)])
@pytest.mark.parametrize("penalty", [0.1, 10.0])
def test_predictions_solve_the_normal_equations(examples: int, size: int, penalty: float) -> None:
    features, targets, new = normal(examples, size, seed=0), normal(examples, 2, seed=1), normal(5, size, seed=2)
    wide = torch.cat([features, torch.ones(examples, 1, dtype=torch.float64)], 1)
    square = torch.eye(size + 1, dtype=torch.float64) * penalty
    square[-1, -1] = 0  # the intercept is not penalised
    weights = torch.linalg.solve(wide.T @ wide + square, wide.T @ targets)
    expected = torch.cat([new, torch.ones(5, 1, dtype=torch.float64)], 1) @ weights
    torch.testing.assert_close(ridge_predict(features, targets, new, penalty), expected)


def test_predictions_are_those_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, targets, new = normal(50, 8, seed=3), normal(50, 3, seed=4), normal(9, 8, seed=5)
    for penalty in (1e-3, 1.0, 100.0):
        theirs = linear_model.Ridge(alpha=penalty, solver="svd").fit(features.numpy(), targets.numpy())
        ours = ridge_predict(features, targets, new, penalty)
        torch.testing.assert_close(ours, torch.from_numpy(theirs.predict(new.numpy())))


def test_the_penalty_that_scikit_learn_chooses_has_the_smallest_leave_one_out_error() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features = normal(60, 20, seed=6)
    targets = features[:, :1] + 2 * normal(60, 1, seed=7)
    penalties = [0.1, 1.0, 10.0, 100.0, 1000.0]
    theirs = linear_model.RidgeCV(alphas=penalties).fit(features.numpy(), targets.numpy())
    errors = leave_one_out_error(features, targets, penalties)
    assert penalties[errors.index(min(errors))] == theirs.alpha_


def test_leave_one_out_errors_are_those_of_fits_without_each_example() -> None:
    features, targets = normal(15, 4, seed=8), normal(15, 2, seed=9)
    for penalty, error in zip((0.5, 5.0), leave_one_out_error(features, targets, [0.5, 5.0]), strict=True):
        squares = []
        for left_out in range(15):
            kept = torch.arange(15) != left_out
            predicted = ridge_predict(features[kept], targets[kept], features[[left_out]], penalty)
            squares.append((predicted - targets[left_out]) ** 2)
        assert error == pytest.approx(float(torch.stack(squares).mean()), rel=1e-9)


def test_a_probe_of_classes_that_are_apart_is_right() -> None:
    classes = torch.arange(60) % 3
    features = one_hot(classes) @ normal(3, 10, seed=10) * 5 + 0.1 * normal(60, 10, seed=11)
    score = ridge_probe(features, classes, "class")
    assert score.mean == 1.0
    assert score.error == 0.0


def test_a_probe_of_features_without_the_classes_is_at_chance() -> None:
    classes = torch.arange(400) % 2
    score = ridge_probe(normal(400, 5, seed=12), classes, "class")
    assert abs(score.mean - 0.5) < 0.1
    assert 0 < score.error < 0.06


def test_numbers_are_scored_by_r_squared_and_labels_by_accuracy() -> None:
    features = normal(80, 6, seed=13)
    assert ridge_probe(features, features[:, 0] * 3 + 7, "value").mean == pytest.approx(1.0, abs=1e-3)
    assert ridge_probe(features, normal(80, seed=14), "value").mean < 0.3
    labels = (features[:, :2] > 0).long()
    assert ridge_probe(features, labels, "multilabel").mean > 0.9


def test_the_split_depends_on_the_seed_alone() -> None:
    features, classes = normal(60, 5, seed=15), torch.arange(60) % 2
    assert ridge_probe(features, classes, "class", seed=1) == ridge_probe(features, classes, "class", seed=1)
    assert ridge_probe(features, classes, "class", seed=1) != ridge_probe(features, classes, "class", seed=2)


def test_constant_columns_and_one_class_alone_do_no_harm() -> None:
    features = torch.cat([normal(20, 3, seed=16), torch.ones(20, 2, dtype=torch.float64)], 1)
    assert ridge_probe(features, torch.zeros(20, dtype=torch.long), "class").mean == 1.0
    assert ridge_probe(torch.zeros(20, 3), torch.arange(20) % 2, "class").mean <= 0.6
    assert min(PENALTIES) > 0


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="folds=1: expected at least 2, and at most the 10 examples"):
        ridge_probe(torch.zeros(10, 2), torch.zeros(10), "value", folds=1)
    with pytest.raises(ValueError, match="folds=11"):
        ridge_probe(torch.zeros(10, 2), torch.zeros(10), "value", folds=11)
    with pytest.raises(ValueError, match=r"class targets have the shape \(10, 1\)"):
        ridge_probe(torch.zeros(10, 2), torch.zeros(10, 1), "class")
