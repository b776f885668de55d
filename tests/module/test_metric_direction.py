from __future__ import annotations

import pytest

from lightning_freeze.module.metric_direction import larger_is_better


@pytest.mark.parametrize(
    "name", ["val_accuracy", "val_acc", "test_f1_macro", "AUROC", "valid/precision@1", "val-mAP", "test_exact_match"]
)
def test_larger_is_better(name: str) -> None:
    assert larger_is_better(name) is True


@pytest.mark.parametrize("name", ["val_loss", "perplexity", "val_mape", "val_rmse", "train/error_rate", "test_wer"])
def test_smaller_is_better(name: str) -> None:
    assert larger_is_better(name) is False


@pytest.mark.parametrize("name", ["val_score", "mapping", "accuracy_loss", ""])
def test_names_that_do_not_tell(name: str) -> None:
    assert larger_is_better(name) is None
