"""A race of candidates on a budget: successive halving, then the finalists at full length with several seeds.

Successive halving is from Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization", AISTATS 2016 (arXiv:1502.07943): each round spends the same, and keeps the better half.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Runs a candidate for a share of the whole run with a seed; returns its score, of which larger is better.
Fit = Callable[[str, float, int], float]


@dataclass(frozen=True)
class Round:
    """One round of a race.

    Attributes:
        candidates: How many take part.
        share: How long each trains, as a share of the whole run.
    """

    candidates: int
    share: float


@dataclass(frozen=True)
class Standing:
    """How a race went.

    Attributes:
        rounds: Who took part in each round, the best first, and for how long they trained.
        finalists: Who trained at full length, the best of the rounds first.
    """

    rounds: tuple[tuple[tuple[str, ...], float], ...]
    finalists: tuple[str, ...]


def halving_rounds(candidates: int, budget: float) -> list[Round]:
    """The rounds that leave two candidates.

    Args:
        candidates: How many there are, 1 or more.
        budget: What all rounds may cost, in runs of full length. Every round gets the same part of it; no candidate
            trains for longer than a whole run.

    Raises:
        ValueError: If there is no candidate, or ``budget`` is not a positive number.
    """
    if candidates < 1:
        raise ValueError(f"candidates={candidates!r}: expected 1 or more.")
    if not 0 < budget < math.inf:
        raise ValueError(f"budget={budget!r}: expected a number of runs above 0.")
    sizes = []
    while candidates > 2:
        sizes.append(candidates)
        candidates = -(-candidates // 2)
    return [Round(size, min(1.0, budget / len(sizes) / size)) for size in sizes]


def run_race(names: Sequence[str], reference: str, fit: Fit, budget: float, seeds: int) -> Standing:
    """Run a race.

    Args:
        names: The candidates.
        reference: The one that always reaches the final.
        fit: Trains one; a score that is not a number loses against all others.
        budget: As for :func:`halving_rounds`.
        seeds: How many seeds the final has, 1 or more. The rounds before it use the first one.

    Raises:
        ValueError: If the reference is not among the names, a name occurs twice, or a number is out of range.
    """
    if reference not in names or len(set(names)) != len(names):
        raise ValueError(f"names={list(names)!r}: expected different names, with {reference!r} among them.")
    if seeds < 1:
        raise ValueError(f"seeds={seeds!r}: expected 1 or more.")
    remaining, rounds = list(names), []
    for each in halving_rounds(len(names), budget):
        remaining = remaining[: each.candidates]
        scores = {name: _number(fit(name, each.share, 0)) for name in remaining}
        remaining.sort(key=lambda name: -scores[name])
        rounds.append((tuple(remaining), each.share))
    others = [name for name in remaining if name != reference][:1]
    finalists = (reference, *others) if remaining[0] == reference else (*others, reference)
    for seed in range(seeds):
        for name in finalists:
            fit(name, 1.0, seed)
    return Standing(tuple(rounds), finalists)


def _number(score: float) -> float:
    return -math.inf if math.isnan(score) else score
