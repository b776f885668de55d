"""From the outputs of a model to predictions by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_freeze.module.tasks import Task


def predicted(
    logits: Tensor, task: Task, labels: Sequence[str] | None, starts: list[list[int | None]] | None
) -> dict[str, Any]:
    """Return the predictions of a batch, with the names of the classes where these are known.

    Args:
        logits: ``(batch, outputs)``, or ``(batch, sequence, outputs)`` for token tasks.
        task: The task.
        labels: The names of the classes, or None.
        starts: For each row the position at which each word begins, for token tasks; None for a name per token.
    """
    if bool(logits.isnan().any()):
        rank_zero_warn("The outputs of the model are NaN, so the predictions mean nothing: its weights are not finite.")
    result: dict[str, Any] = dict(task.predictions(logits))
    if labels and task.target == "token":
        result["labels"] = _tags(result["predictions"], labels, starts)
    elif labels and task.target == "multilabel":
        rows = result["predictions"].tolist()
        result["labels"] = [[name for name, on in zip(labels, row, strict=True) if on] for row in rows]
    elif labels:
        result["labels"] = [labels[i] for i in result["predictions"].tolist()]
    return result


def _tags(predictions: Tensor, names: Sequence[str], starts: list[list[int | None]] | None) -> list[list[str]]:
    """Return the name of the class at each position; a word without a token has the tag O, or else the first."""
    dropped = "O" if "O" in names else names[0]
    positions = starts or [list(range(predictions.shape[1]))] * len(predictions)
    return [
        [dropped if position is None else names[row[position]] for position in row_starts]
        for row, row_starts in zip(predictions.tolist(), positions, strict=True)
    ]
