"""Losses, metrics and predictions of each task, against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_freeze.module.tasks import TASKS, get_task


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(MisconfigurationException, match=r"'multi-label'.*Did you mean 'multilabel'"):
        get_task("multi-label")


def test_every_task_has_an_auto_class() -> None:
    import transformers

    assert all(hasattr(transformers, task.auto_class) for task in TASKS.values())


def test_classification() -> None:
    task = get_task("classification")
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]]), torch.tensor([0, 1, 1])
    assert task.loss(logits, labels) == pytest.approx(F.cross_entropy(logits, labels).item())
    metrics = task.metrics(2, "val_")
    metrics.update(*task.metric_inputs(logits, labels))
    values = metrics.compute()
    assert set(values) == {"val_accuracy", "val_f1"}
    assert values["val_accuracy"].item() == pytest.approx(2 / 3)
    predictions = task.predictions(logits)
    assert predictions["predictions"].tolist() == [0, 1, 0]
    assert predictions["probabilities"].sum(-1).tolist() == pytest.approx([1.0] * 3)


def test_multilabel() -> None:
    task = get_task("multilabel")
    logits, labels = torch.tensor([[2.0, -1.0], [-2.0, 3.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert task.loss(logits, labels) == pytest.approx(F.binary_cross_entropy_with_logits(logits, labels).item())
    metrics = task.metrics(2, "")
    metrics.update(*task.metric_inputs(logits, labels))
    assert metrics.compute()["accuracy"].item() == pytest.approx(3 / 4)
    assert task.predictions(logits)["predictions"].tolist() == [[1, 0], [0, 1]]


def test_regression() -> None:
    task = get_task("regression")
    logits, labels = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 2.0, 3.0])
    assert task.loss(logits, labels).item() == pytest.approx(1 / 3)
    metrics = task.metrics(None, "")
    metrics.update(*task.metric_inputs(logits, labels))
    values = metrics.compute()
    assert values["mse"].item() == pytest.approx(1 / 3)
    assert values["pearson"].item() == pytest.approx(3 / math.sqrt(28 / 3), abs=1e-4)
    assert task.predictions(logits)["predictions"].tolist() == [1.0, 2.0, 4.0]


def test_ignored_tokens_count_nowhere() -> None:
    task = get_task("token-classification")
    logits, labels = torch.randn(2, 3, 4), torch.tensor([[1, -100, 2], [-100, -100, 0]])
    kept = labels != -100
    assert task.loss(logits, labels) == pytest.approx(F.cross_entropy(logits[kept], labels[kept]).item())
    changed = logits.clone()
    changed[~kept] += 100
    metrics, others = task.metrics(4, ""), task.metrics(4, "")
    metrics.update(*task.metric_inputs(logits, labels))
    others.update(*task.metric_inputs(changed, labels))
    assert metrics.compute() == others.compute()


def test_language_models_predict_the_next_token() -> None:
    task = get_task("causal-lm")
    logits, labels = torch.randn(2, 4, 7), torch.tensor([[1, 2, 3, 4], [5, 6, -100, -100]])
    expected = F.cross_entropy(
        torch.stack([logits[0, 0], logits[0, 1], logits[0, 2], logits[1, 0]]), torch.tensor([2, 3, 4, 6])
    )
    assert task.loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)
    metrics = task.metrics(None, "")
    metrics.update(*task.metric_inputs(logits, labels))
    assert metrics.compute()["perplexity"].item() == pytest.approx(math.exp(expected), rel=1e-4)


def test_what_a_loss_is_the_mean_of() -> None:
    tokens = torch.tensor([[-100, 1, -100, 2], [0, -100, -100, -100]])
    assert get_task("token-classification").count(tokens) == get_task("seq2seq-lm").count(tokens) == 3
    assert get_task("causal-lm").count(tokens) == 2  # nothing predicts the first token
    assert get_task("classification").count(torch.tensor([1, 0, 1])) == 3
    assert get_task("multilabel").count(torch.zeros(4, 2)) == get_task("regression").count(torch.zeros(4)) == 4
