"""From an encoder, or its name, to a model with the head of a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_freeze.arguments import check_at_least, check_unused
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.pooling import PooledModel, Pooling, unwrapped
from lightning_freeze.module.pretrained.heads import Head, adopt_head
from lightning_freeze.module.pretrained.loading import LoadedModel, load
from lightning_freeze.module.pretrained.special_tokens import ensure_special_tokens
from lightning_freeze.module.tasks import Task

DROPOUT = 0.1
"""The default dropout of the small head."""


@dataclass(frozen=True)
class BuildSettings:
    """The arguments of :class:`TransformerModule` that say how its model is built.

    Args:
        pretrained: Whether to load the weights.
        pooling: The pooling of the small head; None for the head of transformers, where there is one.
        hidden_size: Size of the encoder's output vectors; None to find it out.
        dropout: Dropout in the small head.
        model_kwargs: Further arguments for ``from_pretrained``.
    """

    pretrained: bool
    pooling: Pooling | None
    hidden_size: int | None
    dropout: float
    model_kwargs: dict[str, Any]

    def refuse_small_head(self, reason: str) -> None:
        """Refuse the arguments of the small head where there is none.

        Args:
            reason: Why there is none.

        Raises:
            ConfigurationError: One was given.
        """
        check_unused(reason, [("hidden_size", self.hidden_size, None), ("dropout", self.dropout, DROPOUT)])


def build_model(
    encoder: str | nn.Module, task: Task, num_classes: int | None, labels: list[str] | None, settings: BuildSettings
) -> LoadedModel:
    """Build the model of a task.

    Args:
        encoder: A local folder or hub name, a transformers model with a head, or a bare encoder.
        task: The task to learn.
        num_classes: Number of classes; None where the task has none.
        labels: The names of the classes, or None.
        settings: How to build it.

    Raises:
        ConfigurationError: The encoder does not exist or does not fit the task, or a setting has no effect.
    """
    outputs = num_classes or 1
    if isinstance(encoder, str):
        return _from_name(encoder, task, outputs, labels, settings)
    if not isinstance(encoder, nn.Module):
        raise ConfigurationError(f"encoder is {encoder!r}: expected a local folder, a hub name or a torch.nn.Module.")
    check_unused(
        "it is for an encoder that is loaded from a folder or hub name, and the encoder is a module",
        [("pretrained", settings.pretrained, True), ("model_kwargs", settings.model_kwargs, {})],
    )
    base = unwrapped(encoder)
    takes_padding = ensure_special_tokens(base, lambda: None)
    if settings.pooling is None and has_own_head(encoder):
        settings.refuse_small_head("the encoder has a head of its own")
        head = Head(trained=True) if task.is_language_model else adopt_head(base, outputs, labels)
        return LoadedModel(encoder, head, takes_padding)
    if settings.pooling == "none":
        settings.refuse_small_head("pooling='none' adds no head")
    pooling = settings.pooling or "mean"
    model = PooledModel(encoder, task, outputs, pooling, settings.hidden_size, settings.dropout)
    return LoadedModel(model, Head(trained=pooling == "none"), takes_padding)


def has_own_head(module: nn.Module) -> bool:
    """Whether a module is a transformers model with a head, also inside a PEFT wrapper.

    Args:
        module: Any module.
    """
    base = unwrapped(module)
    return getattr(base, "base_model", base) is not base


def count_classes(task: Task, num_classes: int | None, labels: list[str] | None) -> int | None:
    """Return the number of classes of a task, from their number or their names; None for a task without classes.

    Args:
        task: The task.
        num_classes: The number that was given, or None.
        labels: The names that were given, or None.

    Raises:
        ConfigurationError: Both are missing, too few, or contradict each other.
    """
    check_at_least("num_classes", num_classes, 0)
    if not task.has_classes:
        given = None if num_classes == 1 and task.target == "value" else num_classes
        check_unused(f"the task {task.name!r} has no classes", [("num_classes", given, None), ("labels", labels, None)])
        return None
    if num_classes is None and labels is not None:
        num_classes = len(labels)
    if num_classes is None:
        raise ConfigurationError(
            f"Task {task.name!r} needs num_classes: expected the number of classes or their names (labels=[...]). "
            "TextDataModule has both once it has training data."
        )
    least = 1 if task.target == "multilabel" else 2
    if num_classes < least:
        raise ConfigurationError(f"num_classes is {num_classes}: expected at least {least} for {task.name!r}.")
    if labels is not None and len(labels) != num_classes:
        raise ConfigurationError(f"num_classes is {num_classes}, but {len(labels)} labels are given: {labels}.")
    return int(num_classes)


def _from_name(name: str, task: Task, outputs: int, labels: list[str] | None, settings: BuildSettings) -> LoadedModel:
    kwargs = settings.model_kwargs
    if settings.pooling == "none":
        raise ConfigurationError(
            "pooling is 'none', which takes a module's output as logits, and an encoder that is loaded by name has "
            "none: expected 'mean', 'cls' or 'last', or no pooling for the head of transformers."
        )
    if settings.pooling is not None:
        loaded = load(name, None, settings.pretrained, **kwargs)
        model = PooledModel(loaded.model, task, outputs, settings.pooling, settings.hidden_size, settings.dropout)
        return LoadedModel(model, Head(trained=False), loaded.takes_padding)
    settings.refuse_small_head("it is for the small head that pooling asks for")
    config = _head_config(task, outputs, labels)
    for key in sorted(config.keys() & kwargs.keys()):
        raise ConfigurationError(f"model_kwargs holds {key!r}: expected task, num_classes and labels to set it.")
    return load(name, task, settings.pretrained, **config, **kwargs)


def _head_config(task: Task, outputs: int, labels: list[str] | None) -> dict[str, Any]:
    if task.is_language_model:
        return {}
    config: dict[str, Any] = {"num_labels": outputs}
    if labels:
        config["id2label"] = dict(enumerate(labels))
        config["label2id"] = {name: index for index, name in enumerate(labels)}
    if task.problem_type:
        config["problem_type"] = task.problem_type
    return config
