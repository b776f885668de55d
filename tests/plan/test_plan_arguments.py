from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from plan.projects import BATCH, Classifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_freeze import EpochTrigger, GradualUnfreezing, LayerFreezing, StepTrigger, TrainingPlan, plan_training
from lightning_freeze.errors import ConfigurationError


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Samples without end."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            yield {name: tensor[0] for name, tensor in BATCH.items()}


class StreamedData(LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(Stream(), batch_size=4)


class SizedData(LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader([{name: tensor[0] for name, tensor in BATCH.items()}] * 40, batch_size=4)  # type: ignore[arg-type]


class NamedData(LightningDataModule):
    """Batches of two loaders."""

    def train_dataloader(self) -> Any:
        return {"text": SizedData().train_dataloader(), "more": SizedData().train_dataloader()}


class TakesNamed(Classifier):
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return super().training_step(batch["text"], batch_idx)


def _ends(plan: TrainingPlan) -> list[int | None]:
    return [phase.last_batch for phase in plan.phases]


@pytest.mark.slow
def test_a_stream_is_one_epoch_of_as_many_steps_as_the_run() -> None:
    by_steps = plan_training(
        Classifier(), GradualUnfreezing(trigger=StepTrigger(5)), datamodule=StreamedData(), max_steps=50
    )
    assert _ends(by_steps) == [5, 10, 15, 20, 50]
    by_epochs = plan_training(
        Classifier(), GradualUnfreezing(), datamodule=StreamedData(), max_steps=50, accumulate_grad_batches=2
    )
    assert _ends(by_epochs) == [100]
    assert "one epoch is assumed" in by_epochs.notes[0]


@pytest.mark.slow
def test_a_stream_with_the_length_of_an_epoch() -> None:
    plan = plan_training(
        Classifier(), GradualUnfreezing(), datamodule=StreamedData(), batches_per_epoch=20, max_steps=50
    )
    assert _ends(plan) == [20, 40, 50]


def test_a_stream_without_end_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"has no length.*batches_per_epoch"):
        plan_training(Classifier(), GradualUnfreezing(), datamodule=StreamedData(), max_epochs=3)


def test_several_loaders() -> None:
    plan = plan_training(TakesNamed(), LayerFreezing("embeddings"), datamodule=NamedData(), max_epochs=2)
    assert plan.batches == 20
    assert plan.batch["text.input_ids"] == (4, 12)
    assert plan.peak() is not None


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({"limit_train_batches": 0.5, "max_epochs": 3}, 15),
        ({"batches_per_epoch": 3, "max_epochs": 3}, 9),
        ({"max_epochs": -1, "max_steps": 25}, 25),
        ({"max_steps": 7, "accumulate_grad_batches": 4}, 24),
        ({"fast_dev_run": 2, "max_epochs": 9}, 2),
        ({"overfit_batches": 4, "max_epochs": 2}, 8),
        ({"max_epochs": -1}, None),
        ({"max_time": "00:01:00:00"}, None),
        ({"max_epochs": 2, "accelerator": "gpu", "devices": 4, "logger": True}, 20),
    ],
    ids=str,
)
def test_length_of_the_run(options: dict[str, Any], batches: int | None) -> None:
    plan = plan_training(Classifier(), LayerFreezing("embeddings"), datamodule=SizedData(), **options)
    assert plan.batches == batches
    assert plan.notes == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_step": 5}, "no.* argument 'max_step'. Did you mean 'max_steps'"),
        ({"batches_per_epoch": 0}, "batches_per_epoch is 0: expected a whole number, 1 or more"),
        ({"batches_per_epoch": 2.5}, "batches_per_epoch is 2.5"),
        ({"max_epochs": 0}, "nothing to plan.*max_epochs=0"),
        ({"max_steps": 0}, "nothing to plan.*max_steps=0"),
        ({"limit_train_batches": 0.0}, "nothing to plan.*limit_train_batches=0.0"),
        ({"memory": "many"}, "memory is 'many': expected a size"),
        ({"memory": "24GX"}, "memory is '24GX'"),
    ],
    ids=str,
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan_training(Classifier(), LayerFreezing("embeddings"), BATCH, **options)


@pytest.mark.parametrize("callback", ["embeddings", LayerFreezing], ids=str)
def test_callbacks_that_are_none(callback: Any) -> None:
    with pytest.raises(ConfigurationError, match="among the callbacks: expected instances of Callback"):
        plan_training(Classifier(), [callback], BATCH)


def test_no_callbacks_and_no_lightning_module() -> None:
    assert plan_training(Classifier(), None, BATCH).phases[0].selector == "all"
    with pytest.raises(ConfigurationError, match="got a Linear: expected a LightningModule"):
        plan_training(nn.Linear(1, 1), [], BATCH)  # type: ignore[arg-type]


@pytest.mark.slow
def test_batches_of_a_tokenizer() -> None:
    from transformers import BatchEncoding

    plan = plan_training(Classifier(), LayerFreezing("embeddings"), BatchEncoding(BATCH))
    assert plan.batch == {name: tuple(tensor.shape) for name, tensor in BATCH.items()}
    assert plan.batch_size == 4
    assert plan.full == plan_training(Classifier(), [], BATCH).full


def test_a_pair_is_named_by_position() -> None:
    class Pair(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step({"input_ids": batch[0], "labels": batch[1]}, batch_idx)

    plan = plan_training(Pair(), LayerFreezing("embeddings"), (BATCH["input_ids"], BATCH["labels"]))
    assert plan.batch == {"0": (4, 12), "1": (4,)}


@pytest.mark.slow
def test_fitting_is_found_without_what_the_callbacks_freeze() -> None:
    """A frozen layer that is in eval mode in the run keeps its dropout where another layer is frozen instead."""
    module = Classifier()
    frozen = plan_training(module, LayerFreezing("2,head"), BATCH, memory=10**9)
    needed = plan_training(module, LayerFreezing("embeddings,0"), BATCH).peak()
    assert needed is not None
    assert frozen.fitting is not None
    found = plan_training(module, LayerFreezing("2,head"), BATCH, memory=needed.total).fitting
    assert found is not None
    assert (found.layers, found.memory) == ("embeddings,0", needed)


@pytest.mark.slow
def test_module_that_is_in_eval_mode() -> None:
    module = Classifier()
    module.model.eval()
    plan = plan_training(module, LayerFreezing("embeddings,:2"), BATCH)
    module.model.train()
    other = plan_training(module, LayerFreezing("embeddings,:2"), BATCH)
    assert plan.full is not None
    assert other.full is not None
    assert plan.full.activations < other.full.activations  # no dropout masks


@pytest.mark.slow
def test_epochs_that_are_validated_several_times() -> None:
    plan = plan_training(
        Classifier(), GradualUnfreezing(trigger=EpochTrigger(2)), BATCH, max_epochs=9, batches_per_epoch=4,
        val_check_interval=0.5, check_val_every_n_epoch=2,
    )  # fmt: skip
    assert _ends(plan) == [8, 16, 24, 32, 36]


def test_gradients_are_not_tracked_afterwards() -> None:
    with torch.no_grad():
        plan_training(Classifier(), LayerFreezing("embeddings"), BATCH)
        assert not torch.is_grad_enabled()
