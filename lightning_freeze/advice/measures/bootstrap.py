"""How sure a difference between two plans is: a paired bootstrap over seeds and examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_freeze.errors import listing

_DRAWS = 2000


@dataclass(frozen=True)
class Difference:
    """A difference between two means.

    Attributes:
        mean: The difference.
        low: Lower end of its interval.
        high: Upper end of its interval.
        level: The share of draws within the interval.
        positive: The share of draws in which the difference is 0 or more.
    """

    mean: float
    low: float
    high: float
    level: float
    positive: float


def paired_difference(scores: Tensor, others: Tensor, level: float = 0.9, seed: int = 0) -> Difference:
    """The difference between two plans that saw the same seeds and were scored on the same examples.

    Each draw takes seeds and examples with replacement, the same ones for both plans (Efron and Tibshirani 1993), so
    that it reflects the spread over runs as well as the size of the validation data. With few seeds the spread over
    runs is underestimated.

    Args:
        scores: ``(seeds, examples)`` of the first plan.
        others: ``(seeds, examples)`` of the second one.
        level: The share of draws within the interval.
        seed: Of the draws.

    Raises:
        ValueError: If the shapes differ or hold nothing, or ``level`` is not between 0 and 1.
    """
    if scores.shape != others.shape or scores.ndim != 2 or not scores.numel():
        shapes = listing([tuple(scores.shape), tuple(others.shape)])
        raise ValueError(f"scores have the shapes {shapes}: expected twice the same (seeds, examples).")
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}: expected a share between 0 and 1.")
    differences = (scores - others).double()
    random = torch.Generator().manual_seed(seed)
    seeds, examples = differences.shape
    means = torch.empty(_DRAWS, dtype=torch.float64)
    for draw in range(_DRAWS):
        rows = torch.randint(seeds, (seeds,), generator=random)
        columns = torch.randint(examples, (examples,), generator=random)
        means[draw] = differences[rows].mean(0)[columns].mean()
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = means.quantile(ends).tolist()
    return Difference(float(differences.mean()), low, high, level, float((means >= 0).double().mean()))
