"""What the runner of turns needs of the callback that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lightning_freeze.layers import LayerStack
from lightning_freeze.schedule.phases import Phase
from lightning_freeze.session.phase_runner import ScheduleOwner
from lightning_freeze.strategies.dynamic.measuring.turn_measurement import TurnMeasurement
from lightning_freeze.strategies.dynamic.statistics import Statistics


class TurnOwner(ScheduleOwner, Protocol):
    """The callback that decides about turns; ``turns.py`` says what each member is for."""

    begins_turns_afresh: bool

    def choose(self, stack: LayerStack, turn: int, statistics: Statistics) -> Sequence[str]: ...  # noqa: D102

    def phase_of(self, stack: LayerStack, chosen: Sequence[str]) -> Phase: ...  # noqa: D102

    def turn_length(self) -> int: ...  # noqa: D102

    def measurement(self, stack: LayerStack, chosen: Sequence[str]) -> TurnMeasurement: ...  # noqa: D102

    def turns_to_reach_all(self, stack: LayerStack) -> int | None: ...  # noqa: D102
