"""A schedule whose phases come in any order and again: a policy chooses one for each turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.schedule.phases import Phase, Progress
from lightning_freeze.schedule.resolved_phases import ResolvedPhases
from lightning_freeze.schedule.triggers import Clock, StepTrigger
from lightning_freeze.session.phase_runner import PhaseRunner, ScheduleOwner
from lightning_freeze.session.session import Session

_MOST_TURNS = 40  # that a plan shows of a run


class DynamicRunner(PhaseRunner):
    """Puts the phase of each turn into effect, by the means of :class:`PhaseRunner`.

    Each phase is a different set of layers. The first ones are known from the start, so that everything that is checked
    about phases is checked before the run; sets that come up later are added as they come.

    Args:
        owner: The callback.
        plan: Its phases, as long as no module is known.
        phase_of_turn: Returns the phase of a turn.
        interval: Returns how many optimizer steps a turn lasts, asked once, when training begins.
    """

    prints_changes = False

    def __init__(
        self,
        owner: ScheduleOwner,
        plan: Sequence[Phase],
        phase_of_turn: Callable[[LayerStack, int], Phase],
        interval: Callable[[], int],
    ) -> None:
        super().__init__(owner, plan)
        self._phase_of_turn = phase_of_turn
        self._interval = interval

    def join(self, session: Session, stack: LayerStack, plan: Sequence[Phase]) -> None:  # noqa: D102
        self.progress.phase = 0  # the phase of turn 0; that of a checkpoint follows with its state
        super().join(session, stack, plan)

    def start_training(self) -> None:
        """Keep the length of a turn for the whole run; unlike other schedules, this one has no last phase to reach."""
        if "interval" not in self.progress.trigger:
            self.progress.trigger["interval"] = self._interval()

    def advance(self) -> None:  # noqa: D102
        session = self.session
        clock = Clock(session.trainer.current_epoch, session.trainer.global_step)
        if not self.progress.starts:
            self.progress.starts.append(clock)
            session.since.update(dict.fromkeys(self.resolved.trains[self.phase], clock))
        number = self._number_of(self._turn(clock))
        if number != self.phase:
            self._change(Progress(number, [self.progress.starts[0], clock], dict(self.progress.trigger)))

    def turns(self, steps: int | None) -> list[tuple[int, Phase]]:  # noqa: D102
        interval = int(self.progress.trigger["interval"])
        most = max(_MOST_TURNS, len(self.resolved.plan))
        number = most if steps is None else min(most, math.ceil(steps / interval))
        runs = [(index, len(list(same))) for index, same in groupby(map(self._number_of, range(number)))]
        turns = [(i, replace(self.resolved.plan[i], until=StepTrigger(length * interval))) for i, length in runs]
        if steps is not None and number * interval >= steps:
            turns[-1] = (turns[-1][0], replace(turns[-1][1], until=None))
        return turns

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state_dict``; in a fit, the layers of the running turn train at once.

        Raises:
            ConfigurationError: If the state is that of another policy, or of other layers.
        """
        session = self._session
        is_fitting = session is not None and session.is_built
        if is_fitting and state["layers"] != self._signature:
            raise ConfigurationError(
                f"The layers of the module have changed since the checkpoint was made, so {self._name} cannot be "
                f"resumed. Resume with the same module and groups."
            )
        self.progress = Progress.from_state_dict(state)
        self.steps.load_state_dict(state["steps"])
        if session is not None and is_fitting and self.progress.starts:
            # The number of a phase is that of the run that saved it; its text is what counts.
            self.progress.phase = self._add(_phase_named(state["plan"][state["phase"]], self.plan))
            session.since.update(dict.fromkeys(self.resolved.trains[self.phase], self.progress.starts[-1]))
            self._hold()

    def _reason(self, clock: Clock) -> str:
        return f"turn {self._turn(clock) + 1} of {self._name} began"

    def _turn(self, clock: Clock) -> int:
        return (clock.step - self.progress.starts[0].step) // int(self.progress.trigger["interval"])

    def _number_of(self, turn: int) -> int:
        return self._add(self._phase_of_turn(self.stack, turn))

    def _add(self, phase: Phase) -> int:
        """The number of a phase, which is added to the others if it is new."""
        for number, known in enumerate(self.resolved.plan):
            if known.train == phase.train:
                return number
        added = ResolvedPhases.on(self.stack, [phase], self.owner.frozen_eval)
        self.resolved.plan.extend(added.plan)
        self.resolved.trains.extend(added.trains)
        self.resolved.factors.extend(added.factors)
        self.resolved.freezes.extend(added.freezes)
        return len(self.resolved.plan) - 1


def _phase_named(text: str, plan: Sequence[Phase]) -> Phase:
    train = text.split(" until ")[0]
    return next((phase for phase in plan if phase.train == train), Phase(train))
