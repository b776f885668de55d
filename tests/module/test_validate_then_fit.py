"""Validation, testing and training with one module, in any order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from reviews import save_csv

from lightning_freeze.data import TextDataModule
from lightning_freeze.module import TransformerModule


def trainer(**settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", enable_model_summary=False, max_epochs=1, **{**quiet, **settings})


@pytest.mark.parametrize(
    ("task", "label"),
    [("regression", float), ("classification", lambda i: i % 2), ("multilabel", lambda i: i % 2), ("causal-lm", str)],
    ids=["regression", "classification", "multilabel", "causal-lm"],
)
def test_validate_then_fit(task: Any, label: Any, tmp_path: Path, tiny_bert_dir: Path, tiny_gpt2_dir: Path) -> None:
    rows = [{"text": "good film" if i % 2 else "a bad plot", "label": label(i), "b": 1 - i % 2} for i in range(8)]
    file = str(save_csv(tmp_path / "rows.csv", rows))
    folder = str(tiny_gpt2_dir if task == "causal-lm" else tiny_bert_dir)
    columns: dict[str, Any] = {"label": ["label", "b"]} if task == "multilabel" else {}
    data = TextDataModule(folder, task, train=file, val=file, test=file, batch_size=4, **columns)
    module = TransformerModule(folder, task, data.num_classes, data.labels)
    first = trainer().validate(module, data, verbose=False)
    again = trainer().validate(module, data, verbose=False)
    assert first == again
    trainer().fit(module, data)
    trainer().test(module, data, verbose=False)
    plain = trainer(inference_mode=False)
    last = {key.removeprefix("test_"): value for key, value in plain.test(module, data, verbose=False)[0].items()}
    validated = plain.validate(module, data, verbose=False)[0]
    assert last == pytest.approx({key.removeprefix("val_"): value for key, value in validated.items()})
