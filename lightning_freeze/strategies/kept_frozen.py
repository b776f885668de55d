"""What callbacks keep frozen for a whole run."""

from __future__ import annotations

from collections.abc import Hashable

from torch.nn import Parameter

from lightning_freeze.callbacks.layer_freezing import LayerFreezing
from lightning_freeze.session.observer import Schedule
from lightning_freeze.session.session import Session
from lightning_freeze.strategies.dynamic.turns import TurnByTurn


def kept_frozen(session: Session) -> dict[Parameter, str]:
    """The parameters that a callback certainly keeps frozen to the end of a fit, and the name of its class.

    A layer that a policy may choose later does not count, and neither does what the module itself has frozen, which
    its own code may unfreeze.

    Args:
        session: The fit, once every callback has joined.
    """
    schedules = {schedule.owner: schedule for schedule in session.schedules}
    kept: dict[Parameter, str] = {}
    for member in session.members:
        kept |= dict.fromkeys(_kept_by(member, schedules.get(member)), type(member).__name__)
    return kept


def _kept_by(member: Hashable, schedule: Schedule | None) -> set[Parameter]:
    if isinstance(member, LayerFreezing):
        return set(member.stack.select(member.layers).parameters)
    if schedule is None or not schedule.freezes:
        return set()
    kept = set.intersection(*(set(parameters) for parameters, _ in schedule.freezes))
    if isinstance(member, TurnByTurn) and member.chooses_again:
        chosen_later = [*member.choices(member.stack), *member.fixed(member.stack)]
        kept -= {parameter for name in chosen_later for parameter in member.stack[name].parameters()}
    return kept
