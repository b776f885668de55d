"""TransformerModule: a LightningModule around any transformer encoder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_freeze.arguments import check_arguments
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.loading import load_model
from lightning_freeze.module.optim import build_optimizer, linear_warmup_decay
from lightning_freeze.module.pooling import PooledModel, Pooling, accepted, call_with, unwrapped
from lightning_freeze.module.tasks import IGNORE_INDEX, Task, TaskName, get_task


class TransformerModule(LightningModule):
    """Any transformer encoder, with the head, loss and metrics of a task.

    Logged are ``train_loss`` at each step, and at the end of each validation or test the loss and the task's metrics:
    ``val_loss``, ``val_accuracy``, ``val_f1``, ``test_accuracy`` and so on (``mse``, ``mae`` and ``pearson`` for
    regression, ``perplexity`` for language models).

    A module can be loaded again with ``TransformerModule.load_from_checkpoint(path)``; one that was built around an
    ``nn.Module`` needs that module again: ``TransformerModule.load_from_checkpoint(path, encoder=module)``.

    Args:
        encoder: A local folder or hub name for the Auto classes of transformers, or any ``nn.Module``: a transformers
            model with a head of its own, or a bare encoder that returns ``(batch, sequence, hidden)``.
        task: What is to be learned.
        num_classes: Number of classes. The CLI takes it from the data; not needed for regression and language models.
        labels: The names of the classes, in the order of their indices. They are stored in checkpoints, so that
            predictions can name them.
        pretrained: Whether to load the weights; false builds the model from its config alone.
        pooling: For an encoder without a head: the example's vector is the mean of its tokens' vectors (``mean``,
            the default for modules), the first token's (``cls``) or the last token's (``last``), and a dropout and a
            linear layer follow. With a folder or name, giving a pooling asks for this small head in place of the one
            from transformers. ``none`` takes a module's output as logits.
        hidden_size: Size of the encoder's output vectors, where neither its config nor its attributes state it.
        dropout: Dropout in the small head.
        optimizer: Takes parameter groups, returns an optimizer. Norms and biases stand in a group of their own,
            without weight decay; frozen parameters are included, so that the groups stay the same when layers are
            unfrozen.
        lr_scheduler: Takes an optimizer, returns a scheduler. By default the rate rises linearly over the first steps
            and falls linearly to 0 at the end of the run, step by step.
        lr_scheduler_interval: Whether a scheduler given here is stepped at each step or at each epoch.
        warmup_ratio: Share of all steps in which the default schedule rises, at least 0 and below 1.
        model_kwargs: Further arguments for ``from_pretrained``, for example ``attn_implementation`` or any value of
            the model's config.
        generate_kwargs: Arguments for ``generate``, by which language models predict. 64 new tokens by default.

    Raises:
        ConfigurationError: The encoder does not exist or lacks a head for the task, or a value is out of range.
    """

    def __init__(
        self,
        encoder: str | nn.Module,
        task: TaskName = "classification",
        num_classes: int | None = None,
        labels: list[str] | None = None,
        pretrained: bool = True,
        pooling: Pooling | None = None,
        hidden_size: int | None = None,
        dropout: float = 0.1,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=5e-5, weight_decay=0.01),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["step", "epoch"] = "epoch",
        warmup_ratio: float = 0.1,
        model_kwargs: dict[str, Any] | None = None,
        generate_kwargs: dict[str, Any] | None = None,
    ) -> None:
        check_arguments(TransformerModule, locals(), excludes={"warmup_ratio": "lr_scheduler"}, own=("task",))
        super().__init__()
        if isinstance(encoder, os.PathLike):
            encoder = os.fspath(encoder)
        self.save_hyperparameters(ignore=["encoder", "optimizer", "lr_scheduler"])
        self.hparams.update(num_classes=num_classes, labels=labels)
        if isinstance(encoder, str):
            self.hparams["encoder"] = encoder
        self.task = get_task(task)
        self.labels = list(labels) if labels else None
        self.num_classes = _count_classes(self.task, num_classes, self.labels)
        _check_share("warmup_ratio", warmup_ratio)
        _check_share("dropout", dropout)
        self.optimizer_factory = optimizer
        self.lr_scheduler_factory = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.warmup_ratio = warmup_ratio
        self.generate_kwargs = {"max_new_tokens": 64, **(generate_kwargs or {})}
        self.model = self._build(encoder, pretrained, pooling, hidden_size, dropout, model_kwargs or {})
        self.val_metrics = self.task.metrics(self.num_classes, "val_")
        self.test_metrics = self.task.metrics(self.num_classes, "test_")

    def forward(self, **inputs: Any) -> Tensor:
        """Return the logits of a batch.

        Args:
            **inputs: Model inputs by name, for example ``input_ids`` and ``attention_mask`` ``(batch, sequence)``.
        """
        return _logits(call_with(self.model, inputs))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of one batch and log it as ``train_loss``."""
        loss, _, labels = self._evaluate(batch)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss and the metrics of the validation data."""
        self._measure(batch, "val", self.val_metrics)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss and the metrics of the test data."""
        self._measure(batch, "test", self.test_metrics)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Return predictions for one batch.

        Returns:
            ``predictions`` (class indices, zeros and ones for each label, numbers, or token indices),
            ``probabilities`` where the task has classes, ``labels`` (names, where they are known), ``index`` (the row
            of each example in its file) and ``text`` (what a language model wrote), each where it applies.
        """
        inputs, targets = unpack(batch)
        index = inputs.pop("index", None)
        result: dict[str, Any]
        if self.task.is_language_model and callable(generate := getattr(self.model, "generate", None)):
            result = {"predictions": generate(**accepted(self.model, inputs), **self.generate_kwargs)}
            tokenizer = getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)
            if tokenizer is not None:
                result["text"] = tokenizer.batch_decode(result["predictions"], skip_special_tokens=True)
        else:
            result = dict(self.task.predictions(self(**inputs)))
            if self.labels:
                begins_word = None if targets is None else targets != IGNORE_INDEX
                mask = inputs.get("attention_mask") if begins_word is None else begins_word
                result["labels"] = self._names(result["predictions"], mask)
        if index is not None:
            result["index"] = index
        return result

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer over all parameters, frozen ones included, and the schedule."""
        optimizer = build_optimizer(self.optimizer_factory, self)
        if self.lr_scheduler_factory is None:
            total = self.trainer.estimated_stepping_batches
            schedule = linear_warmup_decay(optimizer, total, self.warmup_ratio)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
        scheduler = self.lr_scheduler_factory(optimizer)
        settings: dict[str, Any] = {"scheduler": scheduler, "interval": self.lr_scheduler_interval}
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            settings["monitor"] = getattr(scheduler, "monitor", "val_loss")
        return {"optimizer": optimizer, "lr_scheduler": settings}  # type: ignore[return-value]

    def _build(
        self,
        encoder: str | nn.Module,
        pretrained: bool,
        pooling: Pooling | None,
        hidden_size: int | None,
        dropout: float,
        model_kwargs: dict[str, Any],
    ) -> nn.Module:
        if isinstance(encoder, str):
            if pooling is None:
                return load_model(encoder, self.task, pretrained, **self._head_config(), **model_kwargs)
            encoder = load_model(encoder, None, pretrained, **model_kwargs)
        elif pooling is None and has_own_head(encoder):
            return encoder
        outputs = self.num_classes or 1
        return PooledModel(encoder, self.task, outputs, pooling or "mean", hidden_size, dropout)

    def _head_config(self) -> dict[str, Any]:
        if self.task.is_language_model:
            return {}
        config: dict[str, Any] = {"num_labels": self.num_classes or 1}
        if self.labels:
            config["id2label"] = dict(enumerate(self.labels))
            config["label2id"] = {name: index for index, name in enumerate(self.labels)}
        if self.task.problem_type:
            config["problem_type"] = self.task.problem_type
        return config

    def _evaluate(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        inputs, labels = unpack(batch)
        if labels is None:
            raise ConfigurationError(
                f"The batch has no labels: expected the key 'labels' beside {sorted(inputs)}, or a pair of inputs "
                "and labels."
            )
        inputs.pop("index", None)
        # A model with a loss of its own may add to it (router losses) or need the labels (decoder inputs).
        output = call_with(self.model, {**inputs, "labels": labels})
        logits = _logits(output)
        loss = getattr(output, "loss", None)
        return (loss if isinstance(loss, Tensor) else self.task.loss(logits, labels)), logits, labels

    def _measure(self, batch: Any, stage: str, metrics: MetricCollection) -> None:
        loss, logits, labels = self._evaluate(batch)
        metrics.update(*self.task.metric_inputs(logits, labels))
        self.log(f"{stage}_loss", loss, prog_bar=True, batch_size=len(labels), sync_dist=True)
        best = f"{stage}_{self.task.monitor}"
        self.log_dict({k: v for k, v in metrics.items() if k == best}, prog_bar=True, batch_size=len(labels))
        self.log_dict({k: v for k, v in metrics.items() if k != best}, batch_size=len(labels))

    def _names(self, predictions: Tensor, mask: Tensor | None) -> list[Any]:
        names = self.labels or []
        if self.task.target == "multilabel":
            return [[name for name, on in zip(names, row, strict=True) if on] for row in predictions.tolist()]
        if self.task.target == "token":
            keep = predictions.new_ones(predictions.shape) if mask is None else mask
            rows = zip(predictions.tolist(), keep.tolist(), strict=True)
            return [[names[i] for i, kept in zip(row, kept_row, strict=True) if kept] for row, kept_row in rows]
        return [names[i] for i in predictions.tolist()]


def has_own_head(module: nn.Module) -> bool:
    """Whether a module is a transformers model with a head (PEFT's wrapping of one included).

    Args:
        module: Any module.
    """
    base = unwrapped(module)
    return getattr(base, "base_model", base) is not base


def unpack(batch: Any) -> tuple[dict[str, Any], Tensor | None]:
    """Split a batch into model inputs and labels.

    Args:
        batch: A mapping with the key ``labels`` (or ``label``), or a pair of inputs and labels, or the inputs alone.

    Raises:
        ConfigurationError: It is none of these.
    """
    labels: Tensor | None = None
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        batch, labels = batch
    if isinstance(batch, Tensor):
        return {"pixel_values" if batch.is_floating_point() else "input_ids": batch}, labels
    if not isinstance(batch, Mapping):
        raise ConfigurationError(
            f"The batch is a {type(batch).__name__}: expected a dict of tensors or a pair (inputs, labels)."
        )
    inputs = dict(batch)
    for key in ("labels", "label"):
        found = inputs.pop(key, None)
        labels = found if labels is None else labels
    return inputs, labels


def _logits(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise ConfigurationError(
        f"The model returned {type(output).__name__} without logits: expected a tensor or a transformers output with "
        "logits. For an encoder without a head, give pooling='mean', 'cls' or 'last'."
    )


def _count_classes(task: Task, num_classes: int | None, labels: list[str] | None) -> int | None:
    if not task.has_classes:
        return None
    if num_classes is None and labels is not None:
        num_classes = len(labels)
    if num_classes is None:
        raise ConfigurationError(
            f"Task {task.name!r} needs num_classes: expected the number of classes or their names (labels=[...]). "
            "TextDataModule knows both once it has training data."
        )
    least = 1 if task.target == "multilabel" else 2
    if num_classes < least:
        raise ConfigurationError(f"num_classes is {num_classes}: expected at least {least} for {task.name!r}.")
    if labels is not None and len(labels) != num_classes:
        raise ConfigurationError(f"num_classes is {num_classes}, but {len(labels)} labels are given: {labels}.")
    return num_classes


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigurationError(f"{name} is {value}: expected a share of at least 0 and below 1.")
