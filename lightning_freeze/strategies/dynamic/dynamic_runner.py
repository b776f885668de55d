"""A schedule whose phases come in any order and again: the layers of each turn are chosen when it begins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from torch.optim import Optimizer

from lightning_freeze.distributed import before_change
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.schedule.phases import Phase, Progress
from lightning_freeze.schedule.triggers import Clock, StepTrigger
from lightning_freeze.session.phase_runner import PhaseRunner
from lightning_freeze.session.session import Session
from lightning_freeze.strategies.dynamic.measuring.turn_measurement import TurnMeasurement
from lightning_freeze.strategies.dynamic.statistics import Statistics
from lightning_freeze.strategies.dynamic.too_few_turns import warn_if_too_few_turns
from lightning_freeze.strategies.dynamic.turn_owner import TurnOwner

_MOST_TURNS = 40  # that a plan shows of a run


class DynamicRunner(PhaseRunner):
    """Puts the phase of each turn into effect, by the means of :class:`PhaseRunner`.

    Each phase is a different set of layers. The first ones are known from the start, so that everything that is checked
    about phases is checked before the run; sets that come up later are added as they come.

    Args:
        owner: The callback.
        plan: Its phases, as long as no module is known.

    Attributes:
        statistics: What has been measured in the turns that have ended.
        chosen: The layers that were chosen for the running turn.
    """

    prints_changes = False

    owner: TurnOwner

    def __init__(self, owner: TurnOwner, plan: Sequence[Phase]) -> None:
        super().__init__(owner, plan)
        self.statistics = Statistics()
        self.chosen: Sequence[str] = ()
        self._measurement: TurnMeasurement | None = None

    def join(self, session: Session, stack: LayerStack, plan: Sequence[Phase]) -> None:  # noqa: D102
        self.progress.phase = 0  # the phase of turn 0; that of a checkpoint follows with its state
        super().join(session, stack, plan)
        self._choose(0)

    def start_training(self) -> None:
        """Keep the length of a turn for the whole run; unlike other schedules, this one has no last phase to reach."""
        if "interval" not in self.progress.trigger:
            self.progress.trigger["interval"] = self.owner.turn_length()
        turns, starts, trainer = self.owner.turns_to_reach_all(self.stack), self.progress.starts, self.session.trainer
        if turns is not None:
            first = starts[0].step if starts else trainer.global_step
            warn_if_too_few_turns(self._name, turns, int(self.progress.trigger["interval"]), first, trainer)

    def advance(self) -> None:  # noqa: D102
        session = self.session
        clock = Clock(session.trainer.current_epoch, session.trainer.global_step)
        if not self.progress.starts:
            self.progress.starts.append(clock)
            self.progress.trigger["turn"] = 0
            session.since.update(dict.fromkeys(self.resolved.trains[self.phase], clock))
        interval = int(self.progress.trigger["interval"])
        turn, step = divmod(clock.step - self.progress.starts[0].step, interval)
        if turn != self.progress.trigger.get("turn"):
            self._begin_turn(turn, clock)
        self.measurement.begin_batch(session, self.owner, self.resolved.freezes[self.phase], step, interval)

    def turns(self, steps: int | None) -> list[tuple[int, Phase]]:  # noqa: D102
        # A plan measures nothing, so a policy that reads statistics chooses as it does without any.
        interval = int(self.progress.trigger["interval"])
        most = max(_MOST_TURNS, len(self.resolved.plan))
        number = most if steps is None else min(most, math.ceil(steps / interval))
        runs = [(index, len(list(same))) for index, same in groupby(map(self._planned, range(number)))]
        turns = [(i, replace(self.resolved.plan[i], until=StepTrigger(length * interval))) for i, length in runs]
        if steps is not None and number * interval >= steps:
            turns[-1] = (turns[-1][0], replace(turns[-1][1], until=None))
        return turns

    def before_step(self, optimizer: Optimizer) -> None:  # noqa: D102
        if self.progress.starts:  # finders make steps before the run
            self.measurement.before_step(self.session, self.owner, self.resolved.freezes[self.phase])

    def end_batch(self, batch_idx: int) -> None:  # noqa: D102
        super().end_batch(batch_idx)
        self.measurement.end_batch()

    @property
    def measurement(self) -> TurnMeasurement:
        """What is measured in the running turn."""
        assert self._measurement is not None
        return self._measurement

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        known = self.statistics
        measured = {"trained": list(known.trained), "latest": dict(known.latest), "previous": dict(known.previous)}
        turn: dict[str, Any] = {"chosen": list(self.chosen), "statistics": measured, "measurement": None}
        if self._measurement is not None:
            turn["measurement"] = self._measurement.state_dict()
        return {**super().state_dict(), **turn}

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
        if "statistics" in state:  # checkpoints of earlier versions have none
            self.statistics = Statistics(**state["statistics"])
            self.chosen = list(state["chosen"])
        if session is not None and is_fitting and self.progress.starts:
            self._measurement = self.owner.measurement(self.stack, self.chosen)
            self._measurement.load_state_dict(state.get("measurement"))
            # The number of a phase is that of the run that saved it; its text is what counts.
            self.progress.phase = self._add(_phase_named(state["plan"][state["phase"]], self.plan))
            session.since.update(dict.fromkeys(self.resolved.trains[self.phase], self.progress.starts[-1]))
            self._hold()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_measurement": None}

    def choose_again(self) -> None:
        """Repeat the choice of the first turn, before the run has begun."""
        before_change(self.session.module)
        self.progress.phase = self._choose(0)
        self._hold()

    def _reason(self, clock: Clock) -> str:
        return f"turn {self.progress.trigger['turn'] + 1} of {self._name} began"

    def _planned(self, turn: int) -> int:
        return self._add(self.owner.phase_of(self.stack, tuple(self.owner.choose(self.stack, turn, self.statistics))))

    def _begin_turn(self, turn: int, clock: Clock) -> None:
        before_change(self.session.module)  # the layers of a new phase are looked up, as parameters of the module
        self.statistics = self.statistics.after(self.chosen, self.measurement.finish(self.session))
        number = self._choose(turn)
        self.progress.trigger["turn"] = turn
        if self.owner.begins_turns_afresh:
            self._drop_state({p for name in self.chosen for p in self.stack[name].parameters()})
        if number != self.phase:
            self._change(Progress(number, [self.progress.starts[0], clock], dict(self.progress.trigger)))

    def _choose(self, turn: int) -> int:
        """Choose the layers of a turn; returns the number of its phase."""
        self.chosen = tuple(self.owner.choose(self.stack, turn, self.statistics))
        self._measurement = self.owner.measurement(self.stack, self.chosen)
        return self._add(self.owner.phase_of(self.stack, self.chosen))

    def _add(self, phase: Phase) -> int:
        return self.resolved.add(self.stack, phase, self.owner.frozen_eval)


def _phase_named(text: str, plan: Sequence[Phase]) -> Phase:
    train = text.split(" until ")[0]
    return next((phase for phase in plan if phase.train == train), Phase(train))
