"""A loss that is NaN or infinite is reported once, and no checkpoint is chosen by the metrics of such a model."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from reviews import make_reviews, save_csv
from torchmetrics.classification import MulticlassAccuracy

from lightning_freeze.data import TextDataModule
from lightning_freeze.module import TransformerModule
from lightning_freeze.module.finite import LossWatch, NanAware


class Break(Callback):
    """Makes the weights NaN before one step; with ``mend``, they are put back after it."""

    def __init__(self, step: int, mend: bool = False) -> None:
        self.step, self.mend = step, mend
        self.kept: Any = None

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            self.kept = {name: value.clone() for name, value in module.state_dict().items()}
            for parameter in module.parameters():
                parameter.data.fill_(math.nan)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if self.mend and trainer.global_step == self.step + 1:
            module.load_state_dict(self.kept)


def data_of(folder: Path, encoder: Path) -> TextDataModule:
    path = str(save_csv(folder / "a.csv", make_reviews(16)))
    return TextDataModule(str(encoder), train=path, val=path, batch_size=4)


def trainer_of(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**quiet, "max_epochs": 2, **settings})


def test_a_run_that_diverges_is_reported_once(tmp_path: Path, tiny_bert_dir: Path) -> None:
    module = TransformerModule(str(tiny_bert_dir), num_classes=2, optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    by_accuracy = ModelCheckpoint(tmp_path, monitor="val_accuracy", mode="max")
    with pytest.warns(UserWarning) as found:
        trainer_of(tmp_path, Break(4), by_accuracy).fit(module, data_of(tmp_path, tiny_bert_dir))
    said = [str(item.message) for item in found if "training loss" in str(item.message)]
    assert len(said) == 1
    assert "NaN or infinite at step 4. The weights are no longer finite" in said[0]
    assert "a learning rate that is too high (5.0e-01)" in said[0] and "float16" not in said[0]
    assert module.first_nonfinite_step == 4
    # The first epoch was finite, and its checkpoint stays the best one; a constant guess would have replaced it.
    assert "epoch=0" in by_accuracy.best_model_path


def test_metrics_of_a_broken_model_are_not_numbers(tmp_path: Path, tiny_bert_dir: Path) -> None:
    module = TransformerModule(str(tiny_bert_dir), num_classes=2)
    runner = trainer_of(tmp_path, Break(0), enable_checkpointing=False, num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match="training loss"):
        runner.fit(module, data_of(tmp_path, tiny_bert_dir))
    assert {name for name, value in runner.callback_metrics.items() if not value.isnan()} == set()


def test_a_run_that_recovers_goes_on(tmp_path: Path, tiny_bert_dir: Path) -> None:
    # Without state in the optimizer, which would stay NaN.
    module = TransformerModule(str(tiny_bert_dir), num_classes=2, optimizer=lambda p: torch.optim.SGD(p, lr=0.01))
    runner = trainer_of(tmp_path, Break(1, mend=True), enable_checkpointing=False)
    with pytest.warns(UserWarning, match="at step 1"):
        runner.fit(module, data_of(tmp_path, tiny_bert_dir))
    assert runner.global_step == 8
    assert all(value.isfinite() for value in runner.callback_metrics.values())


def test_sixteen_bits_are_named_as_a_cause(tmp_path: Path, tiny_bert_dir: Path) -> None:
    module = TransformerModule(str(tiny_bert_dir), num_classes=2, model_kwargs={"dtype": "float16"})
    with pytest.warns(UserWarning, match=r"Likely causes: weights in float16"):
        trainer_of(tmp_path, Break(0), max_steps=1, enable_checkpointing=False).fit(
            module, data_of(tmp_path, tiny_bert_dir)
        )


def test_predictions_of_a_broken_model(tmp_path: Path, tiny_bert_dir: Path) -> None:
    module = TransformerModule(str(tiny_bert_dir), num_classes=2)
    data = TextDataModule(str(tiny_bert_dir), predict=str(save_csv(tmp_path / "a.csv", make_reviews(4))))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="lightning_freeze")
        trainer_of(tmp_path).predict(module, data)
    torch.nn.init.constant_(module.model.classifier.weight, math.nan)  # type: ignore[union-attr, arg-type]
    with pytest.warns(UserWarning, match="outputs of the model are NaN"):
        trainer_of(tmp_path).predict(module, data)


def test_the_first_step_is_remembered() -> None:
    watch = LossWatch()
    assert watch.first_step() is None
    for step, loss in enumerate([1.0, 2.0, math.inf, math.nan, 1.0]):
        watch.update(torch.tensor(loss), step)
    assert watch.first_step() == 2


def test_a_metric_forgets_a_broken_batch_when_it_is_reset() -> None:
    metric = NanAware(MulticlassAccuracy(2, average="micro"))
    target = torch.tensor([0, 1])
    metric.update(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), target)
    assert metric.compute() == 1.0
    metric.update(torch.tensor([[math.nan, 1.0], [0.0, 1.0]]), target)
    assert metric.compute().isnan()
    metric.reset()
    metric.update(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), target)
    assert metric.compute() == 0.5
    with pytest.raises(NotImplementedError):
        metric(torch.zeros(2, 2), target)
