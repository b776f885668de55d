"""The rule of thumb: how much to freeze, from three facts that are known before any measurement."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_freeze.errors import suggest

Compute = Literal["low", "medium", "high"]

#: Above these, a task is very similar or somewhat similar to what the model was pre-trained on.
VERY_SIMILAR, SIMILAR = 0.8, 0.5
#: Below these, there are few or some training examples.
FEW, SOME = 1_000, 10_000

_LEVELS: tuple[Compute, ...] = get_args(Compute)
# Similarity and amount of data to the share of the blocks to freeze with low, medium and high compute.
_FROZEN: dict[tuple[str, str], tuple[float, float, float]] = {
    ("very similar", "few"): (1.0, 1.0, 1.0),
    ("very similar", "some"): (0.75, 0.75, 0.5),
    ("very similar", "many"): (0.75, 0.25, 0.0),
    ("similar", "few"): (0.75, 0.75, 0.75),
    ("similar", "some"): (0.75, 0.5, 0.5),
    ("similar", "many"): (0.5, 0.25, 0.0),
    ("different", "few"): (0.5, 0.5, 0.5),
    ("different", "some"): (0.5, 0.25, 0.25),
    ("different", "many"): (0.25, 0.0, 0.0),
}
_ABOUT_SIMILARITY = {
    "very similar": "The task is very similar to the pre-training ({similarity:g} > 0.8), so the features fit already",
    "similar": "The task is similar to the pre-training (0.5 < {similarity:g} <= 0.8), so the lower layers fit already",
    "different": "The task differs from the pre-training ({similarity:g} <= 0.5), so most layers have to change",
}
_ABOUT_DATA = {
    "few": "with {examples:,} examples (fewer than 1,000) a model that trains as a whole over-fits",
    "some": "with {examples:,} examples (1,000 to 9,999) the upper layers can be trained",
    "many": "with {examples:,} examples (10,000 or more) over-fitting is no reason to freeze",
}
_ABOUT_COMPUTE = {
    "low": "compute is low, so frozen layers save what matters",
    "medium": "compute is medium, so freezing may save a little",
    "high": "compute is high, so nothing is gained by saving it",
}
_WEAKNESS = (
    "Three numbers describe neither the model nor the data: the similarity is a guess, the limits are round numbers, "
    "and in measurements full fine-tuning often wins where this rule freezes. `advise` measures."
)
_WEAKNESS_OF_CELL = {
    ("very similar", "many"): (
        "The form of the rule that is often quoted bounds the data of each branch from above, so a very similar task "
        "with much data falls through to its last branch, half of the model. Nothing speaks for half: much data takes "
        "away the risk of over-fitting, and with it the need to freeze, and a close task makes freezing cheap. So here "
        "compute decides: 75% with little, nothing with enough."
    ),
    ("different", "few"): (
        "Few examples ask for freezing and a different task for training, so no choice is good. Features of lower "
        "layers may fit better than those of the top, which `advise` shows by a probe of each depth."
    ),
}


@dataclass(frozen=True)
class RuleOfThumb:
    """What the rule of thumb says.

    Attributes:
        frozen: Share of the blocks to freeze, from the input up: 1.0 (only the head trains), 0.75, 0.5, 0.25 or 0.0
            (full fine-tuning). Where anything is frozen, the embeddings are too.
        reason: Why.
        weakness: What the rule cannot see in this case.
    """

    frozen: float
    reason: str
    weakness: str

    @property
    def layers(self) -> str:
        """Selector for :class:`~lightning_freeze.LayerFreezing`, such as ``"75%"``; empty if nothing is frozen."""
        return f"{self.frozen:.0%}" if self.frozen else ""

    def __str__(self) -> str:
        """The answer in words."""
        what = f'freeze {self.layers} of the blocks: LayerFreezing("{self.layers}")' if self.frozen else "train all"
        return f"{what}. {self.reason} {self.weakness}"


def rule_of_thumb(similarity: float, num_examples: int, compute: Compute) -> RuleOfThumb:
    """Say how much to freeze by the rule that is commonly given: task similarity, amount of data and compute.

    More similarity, fewer examples and less compute never freeze less. The rule needs no measurement, and it is what
    :func:`~lightning_freeze.advise` is judged against.

    Args:
        similarity: How similar the task and its texts are to those of the pre-training, from 0 to 1. Above 0.8 the
            task is very similar, above 0.5 similar.
        num_examples: Training examples; fewer than 1,000 are few, 10,000 are many.
        compute: ``"low"``, ``"medium"`` or ``"high"``.

    Returns:
        The share to freeze, the reason, and the known weakness of the rule in this case.

    Raises:
        ValueError: If a value is out of range.

    Examples:
        >>> rule_of_thumb(0.9, 500, "low").layers
        '100%'
        >>> rule_of_thumb(0.9, 50_000, "high").frozen
        0.0
    """
    _check(similarity, num_examples, compute)
    num_examples = int(num_examples)
    cell = _similarity(similarity), _amount(num_examples)
    facts = _ABOUT_SIMILARITY[cell[0]], _ABOUT_DATA[cell[1]], _ABOUT_COMPUTE[compute]
    reason = f"{', '.join(facts)}.".format(similarity=similarity, examples=num_examples)
    weakness = " ".join(filter(None, (_WEAKNESS_OF_CELL.get(cell), _WEAKNESS)))
    return RuleOfThumb(_FROZEN[cell][_LEVELS.index(compute)], reason, weakness)


def _check(similarity: Any, num_examples: Any, compute: Any) -> None:
    if not _is(similarity, numbers.Real) or not 0 <= similarity <= 1:
        raise ValueError(f"similarity={similarity!r}: expected a number from 0 to 1.{_nearest_similarity(similarity)}")
    if not _is(num_examples, numbers.Real) or not _is_whole(num_examples):
        raise ValueError(f"num_examples={num_examples!r}: expected a whole number, 1 or more.")
    if num_examples < 1:
        raise ValueError(f"num_examples={num_examples!r}: expected 1 or more. Without examples nothing can be trained.")
    if compute not in _LEVELS:
        raise ValueError(f"compute={compute!r}: expected 'low', 'medium' or 'high'.{suggest(compute, _LEVELS)}")


def _is_whole(number: Any) -> bool:
    # No float can hold the largest integers, so these are not asked whether they are finite.
    return isinstance(number, numbers.Integral) or (math.isfinite(number) and number == int(number))


def _nearest_similarity(value: Any) -> str:
    if not _is(value, numbers.Real) or math.isnan(value):
        return ""
    is_percent = 2 <= value <= 100
    return f" Did you mean {value / 100 if is_percent else min(max(value, 0), 1):g}?"


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _similarity(similarity: float) -> str:
    return "very similar" if similarity > VERY_SIMILAR else "similar" if similarity > SIMILAR else "different"


def _amount(num_examples: int) -> str:
    return "few" if num_examples < FEW else "some" if num_examples < SOME else "many"
