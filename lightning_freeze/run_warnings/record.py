"""The warnings of a run: each is shown once where it belongs, and kept so that a report can list them."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn


class RunWarning(NamedTuple):
    """One warning of a run.

    Attributes:
        epoch: The epoch in which it was given.
        step: The number of optimizer steps before it, as ``Trainer.global_step`` counts them.
        message: The text, one line.
    """

    epoch: int
    step: int
    message: str


_GIVEN: WeakKeyDictionary[Trainer, list[RunWarning]] = WeakKeyDictionary()


@rank_zero_only
def warn_in_run(trainer: Trainer, message: str) -> None:
    """Give a warning on rank zero, and keep it for a report.

    Args:
        trainer: The running trainer.
        message: The text, one line.
    """
    _GIVEN.setdefault(trainer, []).append(RunWarning(trainer.current_epoch, trainer.global_step, message))
    rank_zero_warn(message, stacklevel=6)


def warnings_of(trainer: Trainer) -> list[RunWarning]:
    """The warnings of a trainer's latest fit so far, in their order; empty on ranks other than zero.

    Args:
        trainer: A trainer that is running, or has run.
    """
    return list(_GIVEN.get(trainer, ()))


def begin_run(trainer: Trainer) -> None:
    """Forget the warnings of an earlier fit of the same trainer.

    Args:
        trainer: The trainer whose next fit begins.
    """
    _GIVEN.pop(trainer, None)
