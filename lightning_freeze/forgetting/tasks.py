"""Forgetting of earlier tasks: scores of each task after each further one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class TaskForgetting(NamedTuple):
    """What is left of earlier tasks after the last one.

    Attributes:
        average: Mean score over all tasks after the last one.
        forgetting: Mean drop of the earlier tasks from their best score so far (Chaudhry et al., "Riemannian Walk for
            Incremental Learning", ECCV 2018, arXiv:1801.10112). Negative where later tasks have helped.
        backward_transfer: Mean change of the earlier tasks since they were learned (Lopez-Paz and Ranzato, "Gradient
            Episodic Memory for Continual Learning", NeurIPS 2017, arXiv:1706.08840). Negative where they are lost.
        drops: Drop of each earlier task, as in ``forgetting``.
    """

    average: float
    forgetting: float
    backward_transfer: float
    drops: tuple[float, ...]


def task_forgetting(scores: Sequence[Sequence[float]]) -> TaskForgetting:
    """Summarise the scores of tasks that were learned one after another.

    Args:
        scores: One row after each task, in order; row ``i`` has the scores (higher is better, such as accuracy) of the
            tasks ``0`` to ``i``, and may have those of later tasks too.

    Raises:
        ValueError: There are fewer than two tasks, a row is too short, or a score is not finite.

    Examples:
        >>> task_forgetting([[0.75], [0.5, 0.8]]).backward_transfer
        -0.25
    """
    count = len(scores)
    if count < 2:
        raise ValueError(f"There are scores after {count} tasks: expected at least 2.")
    for i, row in enumerate(scores):
        if len(row) <= i:
            raise ValueError(f"Row {i} has {len(row)} scores: expected those of tasks 0 to {i}.")
        if not all(map(math.isfinite, row)):
            raise ValueError(f"Row {i} has the scores {list(row)}: expected finite numbers.")
    last = scores[-1]
    drops = tuple(max(scores[i][task] for i in range(task, count - 1)) - last[task] for task in range(count - 1))
    changes = [last[task] - scores[task][task] for task in range(count - 1)]
    return TaskForgetting(
        average=sum(last[:count]) / count,
        forgetting=sum(drops) / len(drops),
        backward_transfer=sum(changes) / len(changes),
        drops=drops,
    )
