"""Taking a batch apart, and the logits out of a model's output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_freeze.errors import ConfigurationError


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


def logits_of(output: Any) -> Tensor:
    """Return the logits in a model's output.

    Args:
        output: A tensor, or an output of transformers with ``logits``.

    Raises:
        ConfigurationError: It is neither.
    """
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise ConfigurationError(
        f"The model returned {type(output).__name__} without logits: expected a tensor or a transformers output with "
        "logits. For an encoder without a head, give pooling='mean', 'cls' or 'last'."
    )
