"""A stored head and the labels of the data: which output means which class.

A head that was trained for named classes keeps its meaning: its outputs are put in the order of the data's labels, by
name. Names are compared without regard to case and to the separators ``_``, ``-`` and space.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_freeze.errors import ConfigurationError, listing

_GENERIC = re.compile(r"label_\d+")
_NAMED_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification")

Rows = list[int | None]
"""For each label the output of the stored head with this meaning; None if there is none."""


@dataclass(frozen=True)
class Head:
    """The head of a model.

    Args:
        trained: Whether all of its outputs come from the stored weights.
        note: What a user should know about its outputs, or None.
    """

    trained: bool
    note: str | None = None


def stored_names(config: Any) -> list[str]:
    """Return the class names of a config in the order of the head's outputs.

    Args:
        config: A config of transformers.
    """
    names: dict[Any, Any] = getattr(config, "id2label", None) or {}
    return [str(names[key]) for key in sorted(names, key=int)]


def are_generic(names: Sequence[str]) -> bool:
    """Whether names say nothing: ``LABEL_0``, ``LABEL_1``, as transformers calls classes without names.

    Args:
        names: The class names of a head.
    """
    return all(_GENERIC.fullmatch(_folded(name)) for name in names)


def match_labels(names: Sequence[str], labels: Sequence[str]) -> Rows | None:
    """Find the output of a stored head that means each label.

    Labels that are numbers are the numbers of the outputs where no name matches (``1`` is ``LABEL_1``, or the second
    of three names if there are three labels ``0``, ``1``, ``2``).

    Args:
        names: The class names of the head, in the order of its outputs.
        labels: The labels of the data, in the order of their indices.

    Returns:
        One output, or None, for each label; None if no label matches any name.
    """
    keys, wanted = _keys(names, labels)
    rows: Rows = [keys.index(key) if key in keys else None for key in wanted]
    if any(row is not None for row in rows):
        return rows
    if are_generic(names) or [str(i) for i in range(len(names))] == list(labels):
        numbers = [int(label) if label.isdecimal() else len(names) for label in labels]
        if all(number < len(names) for number in numbers):
            return list(numbers)
    return None


def describe(source: str, names: Sequence[str], labels: Sequence[str], rows: Rows | None) -> str | None:
    """Describe what happens to a stored head, if it is changed or replaced.

    Args:
        source: What the head belongs to, for the message.
        names: The class names of the head.
        labels: The labels of the data.
        rows: What :func:`match_labels` returned.
    """
    head = f"The head of {source} was trained for the classes {listing(names)}"
    if rows is None and len(names) != len(labels):
        unnamed = f"The head of {source} has {len(names)} outputs" if are_generic(names) else head
        return f"{unnamed}, and the data has the {len(labels)} classes {listing(labels)}: a new head is trained."
    if rows is None:
        pairs = ", ".join(f"{name!r} as {label!r}" for name, label in zip(names, labels, strict=True))
        return (
            f"The names of the data's classes do not occur in the head of {source}, so its outputs are taken in their "
            f"order: {pairs}. If they stand in another order, give labels=[...] in the order of the head."
        )
    new = [label for label, row in zip(labels, rows, strict=True) if row is None]
    if new:
        return f"{head}: the outputs for {listing(new)} are new, the others are taken from it by name."
    if len(names) != len(labels):
        return f"{head}: its outputs for {listing(labels)} are used, and the others are left out."
    if rows != list(range(len(names))):
        return f"{head}: its outputs are put in the order of the data, {listing(labels)}."
    return None


def output_layers(model: Any, outputs: int) -> list[nn.Linear]:
    """Return the layers of a head that produce one output per class.

    Args:
        model: A transformers model with a head.
        outputs: The number of classes.
    """
    prefix = f"{model.base_model_prefix}."
    layers: list[nn.Linear] = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == outputs and not name.startswith(prefix)
    ]
    # A square layer is a hidden layer of the head, unless it is the last one.
    return [layer for layer in layers if layer.in_features != outputs] or layers[-1:]


@torch.no_grad()
def select_outputs(model: Any, rows: Rows, labels: Sequence[str]) -> None:
    """Make the outputs of a head those of the labels, in their order.

    Args:
        model: A transformers model with a head.
        rows: The present output of each label; the weights of the others are initialised again.
        labels: The labels in the order that the outputs are to have.

    Raises:
        ConfigurationError: The layer that holds the outputs cannot be found.
    """
    before = int(model.config.num_labels)
    if rows != list(range(before)):
        layers = output_layers(model, before)
        if not layers:
            raise ConfigurationError(
                f"The classes of {type(model).__name__} stand in another order than labels={list(labels)}, and "
                f"no linear layer with {before} outputs was found: expected labels={stored_names(model.config)}."
            )
        for layer in layers:
            _select(layer, rows, float(getattr(model.config, "initializer_range", None) or 0.02))
        for module in model.modules():
            if getattr(module, "num_labels", None) == before and module is not model.config:
                module.num_labels = len(rows)
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: i for i, label in enumerate(labels)}


def adopt_head(model: Any, outputs: int, labels: Sequence[str] | None) -> Head:
    """Match the head of a model that the user has built with the labels of the data.

    Args:
        model: A transformers model with a head; PEFT's wrapping is taken off.
        outputs: The number of outputs that the task needs.
        labels: The labels of the data, or None.

    Raises:
        ConfigurationError: The head has another number of outputs.
    """
    name = type(model).__name__
    if not name.endswith(_NAMED_HEADS):
        return Head(trained=True)
    if model.config.num_labels != outputs:
        raise ConfigurationError(
            f"{name} has {model.config.num_labels} outputs, but {outputs} are needed: expected "
            f"from_pretrained(..., num_labels={outputs})."
        )
    names = stored_names(model.config)
    if labels is None or are_generic(names) or len(names) != len(labels):
        return Head(trained=True)
    rows = match_labels(names, labels)
    if rows is not None and None not in rows:
        select_outputs(model, rows, labels)
    elif rows is not None:
        raise ConfigurationError(
            f"{name} has the classes {listing(names)}, but the data has {listing(labels)}: expected the same classes, "
            f"or a new head by from_pretrained(..., num_labels={outputs}, id2label=None)."
        )
    return Head(True, describe(name, names, labels, rows))


def _select(layer: nn.Linear, rows: Rows, spread: float) -> None:
    for name, parameter in list(layer.named_parameters(recurse=False)):
        kept = [0 if row is None else row for row in rows]
        values = parameter.detach()[kept].clone()
        for i, row in enumerate(rows):
            if row is None:
                values[i] = torch.randn_like(values[i]) * spread if name == "weight" else 0.0
        if values.shape == parameter.shape:
            parameter.copy_(values)
        else:
            setattr(layer, name, nn.Parameter(values, parameter.requires_grad))
    layer.out_features = len(rows)


def _keys(names: Sequence[str], labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return names that can be compared: folded, unless two different ones would become the same."""
    folded = [_folded(name) for name in names], [_folded(label) for label in labels]
    unique = all(len(set(keys)) == len(keys) for keys in folded)
    return folded if unique else (list(names), list(labels))


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", unicodedata.normalize("NFKC", name).strip().casefold())
