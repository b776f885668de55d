"""The triggers that count steps, scaled to a run of another length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_freeze.callbacks.layer_callback import LayerCallback
from lightning_freeze.schedule.phases import Phase
from lightning_freeze.schedule.resolved_phases import ResolvedPhases
from lightning_freeze.schedule.triggers import StepTrigger, Trigger
from lightning_freeze.session.observer import Schedule


def scaled_steps(steps: int, share: float) -> int:
    """A number of steps in a run of a share of the length, 1 or more.

    Args:
        steps: The number in the whole run.
        share: The share, above 0.
    """
    return max(1, int(steps * share))


def scale_step_triggers(callbacks: Sequence[LayerCallback], share: float) -> None:
    """Scale the triggers of callbacks that are copies: each one is changed in place.

    Args:
        callbacks: The copies; they take part in no fit yet.
        share: See :func:`scaled_steps`.
    """
    # A callback and its schedule hold the same trigger.
    triggers = {id(trigger): trigger for trigger in _triggers_in(list(callbacks), set())}
    for trigger in triggers.values():
        trigger.n = scaled_steps(trigger.n, share)


def _triggers_in(value: Any, seen: set[int]) -> Iterator[StepTrigger]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, StepTrigger):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _triggers_in(each, seen)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _triggers_in(each, seen)
    elif isinstance(value, LayerCallback | Phase | ResolvedPhases | Schedule | Trigger):
        yield from _triggers_in(vars(value), seen)
