"""Forgetting of earlier tasks, by hand and in a real sequence of two tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from reviews import make_reviews, save_csv
from transformers import AutoModel

from lightning_freeze import LayerFreezing, TextDataModule, TransformerModule, task_forgetting

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def test_drops_are_measured_from_the_best_score_and_transfer_from_the_first() -> None:
    result = task_forgetting([[0.5], [0.75, 0.5], [0.25, 0.625, 1.0]])
    assert result.drops == (0.5, -0.125)
    assert result.forgetting == pytest.approx((0.5 - 0.125) / 2)
    assert result.backward_transfer == pytest.approx((-0.25 + 0.125) / 2)
    assert result.average == pytest.approx((0.25 + 0.625 + 1) / 3)


@pytest.mark.parametrize(
    ("scores", "problem"),
    [
        ([[0.5]], "after 1 tasks: expected at least 2"),
        ([[0.5], [0.5]], "Row 1 has 1 scores: expected those of tasks 0 to 1"),
        ([[0.5], [0.5, float("nan")]], "expected finite numbers"),
    ],
)
def test_incomplete_scores_are_refused(scores: list[list[float]], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        task_forgetting(scores)


def scores_of_two_tasks(encoder: torch.nn.Module, tiny_bert_dir: Path, path: Path, frozen: bool) -> list[list[float]]:
    """Two tasks with a head each on one encoder, as the guide does it."""
    tasks, scores = [], []
    for label in ("label", "author"):
        module = TransformerModule(
            encoder, num_classes=2 if label == "label" else 20, pooling="mean", optimizer=torch.optim.Adam
        )
        data = TextDataModule(str(tiny_bert_dir), train=str(path), test=str(path), label=label)
        tasks.append((module, data))
        callbacks = [LayerFreezing("embeddings, 100%", verbose=False)] if frozen else []
        Trainer(max_epochs=2, callbacks=callbacks, **QUIET).fit(module, data)
        scores.append([Trainer(**QUIET).test(*task, verbose=False)[0]["test_accuracy"] for task in tasks])
    return scores


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_forgets_nothing(frozen: bool, tiny_bert_dir: Path, tmp_path: Path) -> None:
    path = save_csv(tmp_path / "reviews.csv", make_reviews())
    torch.manual_seed(0)
    encoder = AutoModel.from_pretrained(tiny_bert_dir)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    result = task_forgetting(scores_of_two_tasks(encoder, tiny_bert_dir, path, frozen))
    changed = any(not torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert changed != frozen, "the second task trains the encoder that the first one reads"
    if frozen:
        assert result.forgetting == 0
