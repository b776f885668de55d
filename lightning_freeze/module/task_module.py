"""A LightningModule that trains, validates and tests a model on a task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.batch import logits_of, unpack
from lightning_freeze.module.finite import LossWatch, describe_divergence
from lightning_freeze.module.pooling import backbone_of, call_with
from lightning_freeze.module.pretrained.special_tokens import prepare_inputs
from lightning_freeze.module.tasks import Task
from lightning_freeze.namespaces import LightningModule
from lightning_freeze.run_warnings.record import warn_in_run


class TaskModule(LightningModule):
    """The steps of a model with the head of a task: loss, metrics, and a report of losses that are not finite.

    A subclass builds the model and its optimizers.

    Attributes:
        task: The task.
        num_classes: Number of classes; None where the task has none.
        model: Returns logits, or an output of transformers with logits and perhaps a loss.
        first_nonfinite_step: The step of the first training loss that was NaN or infinite; None if all were finite.
    """

    model: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.first_nonfinite_step: int | None = None
        self._loss_watch = LossWatch()

    def set_task(self, task: Task, num_classes: int | None) -> None:
        """Say what the model is trained on; to be called once, before the model is built.

        Args:
            task: The task.
            num_classes: Number of classes; None where the task has none.
        """
        self.task = task
        self.num_classes = num_classes

    def make_metrics(self) -> None:
        """Make the metrics of the task; to be called once, when the model is built."""
        self.val_metrics = self.task.metrics(self.num_classes, "val_")
        self.test_metrics = self.task.metrics(self.num_classes, "test_")

    def forward(self, **inputs: Any) -> Tensor:
        """Return the logits of a batch.

        Args:
            **inputs: Model inputs by name, for example ``input_ids`` and ``attention_mask`` ``(batch, sequence)``.
        """
        return self._logits(self.model, inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of one batch and log it as ``train_loss``."""
        loss, labels = self.training_loss(batch)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(labels))
        self._loss_watch.update(loss, self.global_step)
        return loss

    def training_loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the loss of one batch, and its labels."""
        loss, _, labels = self._evaluate(batch)
        return loss, labels

    def on_fit_start(self) -> None:
        """Begin to watch the losses."""
        self._loss_watch, self.first_nonfinite_step = LossWatch(), None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check whether the losses were finite: at once on a CPU, on other devices when values are logged anyway."""
        every = max(1, getattr(self.trainer, "log_every_n_steps", 50))
        if self.device.type == "cpu" or self.global_step % every == 0:
            self._report_nonfinite_loss()

    def on_train_epoch_end(self) -> None:
        """Check whether the losses of the last steps were finite."""
        self._report_nonfinite_loss()

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics, because states that were created in inference mode cannot be updated."""
        with torch.inference_mode(False):
            self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        """As :meth:`on_validation_epoch_start`, for the test metrics."""
        with torch.inference_mode(False):
            self.test_metrics.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss and the metrics of the validation data."""
        self._measure(batch, "val", self.val_metrics)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss and the metrics of the test data."""
        self._measure(batch, "test", self.test_metrics)

    @property
    def _backbone(self) -> nn.Module:
        """The transformers model inside the wrappers; for a module of another kind the module itself."""
        return backbone_of(self.model)

    def _logits(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        return logits_of(call_with(model, prepare_inputs(self._backbone, inputs)))

    def _report_nonfinite_loss(self) -> None:
        if self.first_nonfinite_step is None and (step := self._loss_watch.first_step()) is not None:
            self.first_nonfinite_step = step
            groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
            rates = [float(group.get("initial_lr", group["lr"])) for group in groups if group["lr"] is not None]
            warn_in_run(self.trainer, describe_divergence(self, step, str(self.trainer.precision), rates))

    def _evaluate(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        inputs, labels = self._inputs_and_labels(batch)
        # A model with a loss of its own may add to it (router losses) or need the labels (decoder inputs).
        output = call_with(self.model, {**prepare_inputs(self._backbone, inputs), "labels": labels})
        logits = logits_of(output)
        loss = getattr(output, "loss", None)
        return (loss if isinstance(loss, Tensor) else self.task.loss(logits, labels)), logits, labels

    def _inputs_and_labels(self, batch: Any) -> tuple[dict[str, Any], Tensor]:
        inputs, labels = unpack(batch)
        if labels is None:
            raise ConfigurationError(
                f"The batch has no labels: expected the key 'labels' beside {sorted(inputs)}, or a pair of inputs "
                "and labels."
            )
        inputs.pop("index", None)
        return inputs, labels

    def _measure(self, batch: Any, stage: str, metrics: MetricCollection) -> None:
        loss, logits, labels = self._evaluate(batch)
        metrics.update(*self.task.metric_inputs(logits, labels))
        # Each label counts once, however they are dealt to batches and processes. Lightning averages the sizes over
        # processes, and would truncate the average of integers.
        size: Any = float(self.task.count(labels))
        self.log(f"{stage}_loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        best = f"{stage}_{self.task.monitor}"
        self.log_dict({k: v for k, v in metrics.items() if k == best}, prog_bar=True, batch_size=len(labels))
        self.log_dict({k: v for k, v in metrics.items() if k != best}, batch_size=len(labels))
