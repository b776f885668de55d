"""What the losses of a run say about freezing: pure decisions over one record for each epoch with a validation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

#: Epochs with a validation after which a plateau counts; the best of them must be in their first third.
PLATEAU_EPOCHS = 8

#: Share of the parameters of the blocks that must be frozen for a plateau to count as "much is frozen".
MUCH_FROZEN = 2 / 3

#: A validation loss counts as low progress while it is above this share of the first training loss.
LITTLE_PROGRESS = 0.5

#: Rises of the validation loss in a row after an unfreeze that count, and by how much the two losses must have moved.
RISES, MOVED = 3, 0.05

#: Rises must begin within so many records after an unfreeze, so that it is their likely cause.
SOON = 2


class LossRecord(NamedTuple):
    """The losses of one epoch with a validation.

    Attributes:
        phase: Index of the running phase.
        train: Mean training loss since the validation before.
        val: Validation loss.
    """

    phase: int
    train: float
    val: float


def plateaus_low(records: Sequence[LossRecord], first_train: float, frozen_share: float) -> bool:
    """Whether a run has stopped learning early and at a high loss while much is frozen.

    That is a model that cannot fit even its training data: after 8 epochs in the last phase, the best validation was
    in the first third of them (an improvement by less than 1% counts for nothing); the training loss, too, has fallen
    by less than 2% since then and is not below the validation loss; and neither is below half of the first
    training loss. A gap between the two losses would speak of overfitting, and more freezing would then help.

    Args:
        records: The records since the last phase began.
        first_train: The loss of the first training batch of the run.
        frozen_share: Share of the parameters of the blocks that are frozen.
    """
    if len(records) < PLATEAU_EPOCHS or frozen_share < MUCH_FROZEN:
        return False
    third = len(records) // 3
    early, late = min(r.val for r in records[:third]), min(r.val for r in records[third:])
    train = [record.train for record in records]
    has_stopped = late > 0.99 * early and min(train[third:]) > 0.98 * min(train[:third])
    has_no_gap = min(train) >= 0.95 * min(early, late)
    return has_stopped and has_no_gap and min(early, late) > LITTLE_PROGRESS * first_train > 0


def overfits_since_unfreeze(records: Sequence[LossRecord]) -> int | None:
    """The phase since whose beginning validation has risen while training fell, if the latest records show that.

    The validation loss must have risen, and the training loss fallen, three times in a row and by 5% in all, from
    soon after the change of phase on.

    Args:
        records: All records so far. A phase counts only if the records show its beginning.
    """
    if len(records) <= RISES:
        return None
    window = records[-RISES - 1 :]
    rises = all(b.val > a.val and b.train < a.train for a, b in pairwise(window))
    first, last = window[0], window[-1]
    if not rises or last.val < (1 + MOVED) * first.val or last.train > (1 - MOVED) * first.train:
        return None
    begins = [i for i in range(1, len(records)) if records[i].phase > records[i - 1].phase]
    rising_from = len(records) - RISES
    recent = [i for i in begins if 0 <= rising_from - i < SOON]
    return records[recent[-1]].phase if recent else None
