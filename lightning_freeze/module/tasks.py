"""The tasks: the head class, loss, metrics and predictions of each.

A task is data, not a subclass: :class:`TransformerModule` and :class:`TextDataModule` look everything up here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection, PearsonCorrCoef
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MultilabelAccuracy, MultilabelF1Score
from torchmetrics.text import Perplexity

from lightning_freeze.errors import ConfigurationError, listing, suggest
from lightning_freeze.module.finite import NanAware

IGNORE_INDEX = -100
"""Label of positions that are left out of the loss and the metrics (padding, later pieces of a word)."""

TaskName = Literal[
    "classification",
    "multilabel",
    "pair-classification",
    "regression",
    "token-classification",
    "causal-lm",
    "seq2seq-lm",
    "image-classification",
]
Target = Literal["class", "multilabel", "value", "token", "next-token", "target-token"]


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        name: The name users write.
        auto_class: The transformers Auto class that carries the head.
        target: What one label is: a class, a set of labels, a number, a class for each token, the next token of the
            input, or the tokens of a target text.
        problem_type: The ``problem_type`` of the config in transformers, which selects the loss.
        monitor: The main metric, without the ``val_`` or ``test_`` prefix.
    """

    name: str
    auto_class: str
    target: Target
    problem_type: str | None = None
    monitor: str = "accuracy"

    @property
    def head_suffix(self) -> str:
        """The end of the names of model classes with this task's head, for example ``ForSequenceClassification``."""
        return self.auto_class.removeprefix("AutoModel")

    @property
    def has_classes(self) -> bool:
        """Whether the head has one output per class."""
        return self.target in ("class", "multilabel", "token")

    @property
    def pooled(self) -> bool:
        """Whether the head sees one vector per example (and not one per token)."""
        return self.target in ("class", "multilabel", "value")

    @property
    def is_language_model(self) -> bool:
        """Whether the head predicts tokens of the vocabulary."""
        return self.target in ("next-token", "target-token")

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of one batch.

        Args:
            logits: ``(batch, classes)``, or ``(batch, sequence, classes)`` for tasks with a label for each token.
            labels: Class indices ``(batch,)``, zeros and ones ``(batch, classes)``, numbers ``(batch,)``, or token
                labels ``(batch, sequence)`` with -100 at positions to leave out.
        """
        if self.target == "multilabel":
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        if self.target == "value":
            return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        logits, labels = self.aligned(logits, labels)
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORE_INDEX)

    def count(self, labels: Tensor) -> int:
        """Return how many labels the loss of a batch is the mean of: examples, or tokens that count.

        Args:
            labels: As in :meth:`loss`.
        """
        if self.pooled:
            return len(labels)
        counted = labels[:, 1:] if self.target == "next-token" else labels
        return int((counted != IGNORE_INDEX).sum())

    def metrics(self, num_classes: int | None, prefix: str) -> MetricCollection:
        """Return new metrics for one stage.

        Args:
            num_classes: Number of classes; not used by regression and the language models.
            prefix: Prefix of each metric's name, for example ``"val_"``.
        """
        metrics: dict[str, Metric | MetricCollection]
        if self.target in ("class", "token"):
            classes = int(num_classes or 0)
            metrics = {
                "accuracy": NanAware(MulticlassAccuracy(classes, average="micro", validate_args=False)),
                "f1": NanAware(MulticlassF1Score(classes, average="macro", validate_args=False)),
            }
        elif self.target == "multilabel":
            classes = int(num_classes or 0)
            metrics = {
                "accuracy": NanAware(MultilabelAccuracy(classes, average="micro", validate_args=False)),
                "f1": NanAware(MultilabelF1Score(classes, average="macro", validate_args=False)),
            }
        elif self.target == "value":
            metrics = {"mse": MeanSquaredError(), "mae": MeanAbsoluteError(), "pearson": PearsonCorrCoef()}
        else:
            metrics = {"perplexity": Perplexity(ignore_index=IGNORE_INDEX)}
        # The metrics have different states, so grouping them saves nothing and costs a second update.
        return MetricCollection(metrics, prefix=prefix, compute_groups=False)

    def metric_inputs(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return predictions and targets as the metrics of this task expect them.

        Args:
            logits: As in :meth:`loss`.
            labels: As in :meth:`loss`.
        """
        logits = logits.detach().float()
        if self.target == "token":
            counted = labels != IGNORE_INDEX
            return logits[counted], labels[counted]
        if self.target == "multilabel":
            return logits.sigmoid(), labels.long()
        if self.target == "value":
            return logits.squeeze(-1), labels.float()
        return self.aligned(logits, labels)

    def predictions(self, logits: Tensor) -> dict[str, Tensor]:
        """Turn logits into predictions, and probabilities where the task has classes.

        Args:
            logits: As in :meth:`loss`.
        """
        logits = logits.float()
        if self.target == "value":
            return {"predictions": logits.squeeze(-1)}
        if self.target == "multilabel":
            probabilities = logits.sigmoid()
            return {"predictions": (probabilities >= 0.5).long(), "probabilities": probabilities}
        if self.is_language_model:
            return {"predictions": logits.argmax(-1)}
        return {"predictions": logits.argmax(-1), "probabilities": logits.softmax(-1)}

    def aligned(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and the labels that they predict, position by position.

        Args:
            logits: As in :meth:`loss`.
            labels: As in :meth:`loss`.
        """
        if self.target != "next-token":
            return logits, labels
        return logits[:, :-1], labels[:, 1:]


_SEQUENCE = "AutoModelForSequenceClassification"
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("classification", _SEQUENCE, "class", "single_label_classification"),
        Task("multilabel", _SEQUENCE, "multilabel", "multi_label_classification", monitor="f1"),
        Task("pair-classification", _SEQUENCE, "class", "single_label_classification"),
        Task("regression", _SEQUENCE, "value", "regression", monitor="pearson"),
        Task("token-classification", "AutoModelForTokenClassification", "token", monitor="f1"),
        Task("causal-lm", "AutoModelForCausalLM", "next-token", monitor="perplexity"),
        Task("seq2seq-lm", "AutoModelForSeq2SeqLM", "target-token", monitor="perplexity"),
        Task("image-classification", "AutoModelForImageClassification", "class", "single_label_classification"),
    )
}


def get_task(name: str) -> Task:
    """Return the task of this name.

    Args:
        name: One of :data:`TASKS`.

    Raises:
        ConfigurationError: There is no such task.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise ConfigurationError(f"Unknown task {name!r}: expected one of {listing(TASKS)}.{suggest(name, TASKS)}")
    return TASKS[name]


def first_tensor(batch: dict[str, Any]) -> Tensor:
    """Return the first tensor of a batch; its first dimension is the batch size.

    Args:
        batch: Model inputs by name.
    """
    return next(value for value in batch.values() if isinstance(value, torch.Tensor))
