"""A schedule at work in a run: follows the triggers, and puts each phase into effect."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, Literal, Protocol

from torch.nn import Module, Parameter

from lightning_freeze.distributed import before_change, resynchronise
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.analysis.unused_copies import frozen_by_peft, unused_copies
from lightning_freeze.optimizers.driven_optimizers import driven_by
from lightning_freeze.schedule import checks, phases
from lightning_freeze.schedule.best_weights import BestWeights
from lightning_freeze.schedule.missed_validation import catch_up, validation_is_due
from lightning_freeze.schedule.monitored_metrics import read_metric
from lightning_freeze.schedule.phases import Phase, Progress
from lightning_freeze.schedule.resolved_phases import ResolvedPhases
from lightning_freeze.schedule.triggers import Clock, counts_steps
from lightning_freeze.session.observer import PhaseChange, Schedule
from lightning_freeze.session.optimizer_steps import OptimizerSteps
from lightning_freeze.session.session import Session


class ScheduleOwner(Hashable, Protocol):
    """The callback whose options a schedule follows; see :class:`~lightning_freeze.PhasedFineTuning`."""

    restore_best: bool
    monitor: str | None
    mode: Literal["min", "max"]
    warmup_steps: int
    drop_optimizer_state: bool
    unfreeze_all: bool
    frozen_eval: bool
    verbose: bool


class PhaseRunner(Schedule):
    """Runs the phases of one callback.

    Args:
        owner: The callback.
        plan: Its phases, as long as no module is known.

    Attributes:
        resolved: The phases on the layers of the module.
        progress: How far the schedule has come.
        steps: Counts the steps of each optimizer.
        prints_changes: Whether each change of phase is printed, if the owner is verbose.
    """

    prints_changes = True

    owner: ScheduleOwner

    def __init__(self, owner: ScheduleOwner, plan: Sequence[Phase]) -> None:
        self.owner = owner
        self.resolved = ResolvedPhases(list(plan))
        self.progress = Progress()
        self.steps = OptimizerSteps()
        self._best = BestWeights(owner.mode)
        self._signature: list[dict[str, Any]] = []
        self._due_in_epoch: int | None = None  # the epoch of a validation that is due
        self._is_told = False  # of layers that no optimizer holds
        self._session: Session | None = None

    @property
    def phase(self) -> int:
        """Index of the running phase, 0 for the first."""
        return self.progress.phase

    @property
    def plan(self) -> list[Phase]:
        """The phases of the module that is being fitted, or was fitted last."""
        return list(self.resolved.plan)

    @property
    def freezes(self) -> list[tuple[Sequence[Parameter], Sequence[Module]]]:
        """For each phase, what it holds frozen and what it puts in eval mode."""
        return list(self.resolved.freezes)

    def frozen_ahead(self) -> list[tuple[Sequence[Parameter], Sequence[Module]]]:
        """For the present phase and each later one, what is frozen and what is in eval mode.

        What the schedule would train, but another callback holds or the module itself has frozen, counts as frozen.
        """
        holds = self.session.holds
        barred = [p for p in self.resolved.ever_trains() if not holds.can_train(p, self.owner)]
        return [([*frozen, *barred], modules) for frozen, modules in self.resolved.freezes[self.phase :]]

    @property
    def steps_taken(self) -> int:
        """Steps that all optimizers have taken in this run, whether the trainer has seen them or not."""
        return self.steps.total

    @property
    def restores_best(self) -> bool:
        """Whether a new phase begins with the best weights of the one before."""
        return self.owner.restore_best

    @property
    def drops_state(self) -> bool:
        """Whether optimizers forget what they keep of a layer when it is frozen again."""
        return self.owner.drop_optimizer_state

    @property
    def session(self) -> Session:
        """The running fit."""
        assert self._session is not None
        return self._session

    # ------------------------------------------------------------------------------------------ before the run

    def join(self, session: Session, stack: LayerStack, plan: Sequence[Phase]) -> None:
        """Take part in a fit: find the layers of each phase, and freeze what the running one does not train."""
        self._session, self.stack = session, stack
        self._signature = stack.signature()
        self.resolved = ResolvedPhases.on(stack, plan, self.owner.frozen_eval)
        checks.check_phases_differ(self._name, self.resolved.plan, self.resolved.trains, self.resolved.factors, stack)
        if self.owner.unfreeze_all:
            with session.holds.lifted():
                kept = frozen_by_peft(session.module) | unused_copies(session.module)
            session.at_close(session.holds.unfreeze(p for p in self.resolved.ever_trains() if p not in kept))
        session.holds.hold(self.owner, *self.resolved.freezes[self.phase])

    def check(self, drop_idle: bool) -> None:
        """Refuse phases that cannot train anything, once all callbacks hold what they freeze.

        Args:
            drop_idle: Whether phases that train the same as the one before, because of what others freeze, are left
                out.
        """
        self._check_overlap()
        holds = self.session.holds
        checks.check_phases_train(self.owner, self.resolved.plan, self.resolved.trains, holds.can_train, holds.holders)
        ever_trains, trainer = self.resolved.ever_trains(), self.session.trainer
        checks.warn_of_frozen_by_module(self._name, self.stack, ever_trains, holds.given, trainer)
        if drop_idle:
            plan = self.resolved.without_idle(lambda parameter: holds.can_train(parameter, self.owner))
            if len(plan) < len(self.resolved.plan):
                self.resolved = ResolvedPhases.on(self.stack, plan, self.owner.frozen_eval)

    def _check_overlap(self) -> None:
        governed = {p for layer in self.stack for p in layer.parameters()}
        for other in self.session.schedules:
            if other is not self and governed & {p for layer in other.stack for p in layer.parameters()}:
                raise ConfigurationError(
                    f"{self._name} and {type(other.owner).__name__} both schedule the same layers; keep one of them, "
                    f"or give them groups that do not overlap."
                )

    def leave(self) -> None:
        """Take part in no fit any more; the progress is kept."""
        self._session = None
        self.steps.detach()

    # ------------------------------------------------------------------------------------------ during the run

    def start_fit(self) -> None:  # noqa: D102
        session, trains = self.session, self.resolved.trains
        given, trainer = session.holds.given, session.trainer
        checks.check_phases_are_optimized(self._name, self.resolved.plan, trains, trainer, session.module, given)
        self._is_told = checks.warn_of_layers_left_out(self._name, self.stack, trains, trainer, session.module, given)
        self._count_steps()

    def start_training(self) -> None:  # noqa: D102
        trainer, watched = self.session.trainer, self._watched()
        checks.check_metrics_are_validated(self._name, watched, trainer)
        checks.warn_if_too_long(self._name, self.resolved.plan, self.progress, trainer)
        if self._due_in_epoch is not None and watched:
            catch_up(trainer, self._due_in_epoch)

    def advance(self) -> None:
        """A training batch begins: put the next phase into effect if its trigger has fired."""
        session = self.session
        self._count_steps()
        clock = Clock(session.trainer.current_epoch, session.trainer.global_step)
        progress = phases.advance(self.resolved.plan, self.progress, clock)
        if progress.phase != self.phase:
            self._change(progress)
        elif not self.progress.starts:
            session.since.update(dict.fromkeys(self.resolved.trains[0], clock))
        self.progress = progress
        self.steps.mark(len(progress.starts))

    def _count_steps(self) -> None:
        session = self.session
        is_counted = self.owner.warmup_steps or any(counts_steps(phase.until) for phase in self.resolved.plan)
        # Under automatic optimization there is one optimizer, and the trainer counts its steps.
        if is_counted and not session.module.automatic_optimization:
            self.steps.attach(session.trainer.optimizers)

    def turns(self, steps: int | None) -> list[tuple[int, Phase]]:  # noqa: D102
        return list(enumerate(self.resolved.plan))

    def preview(self, phase: int) -> None:  # noqa: D102
        # A warm-up that began that long ago is over.
        begun = Clock(0, -self.owner.warmup_steps)
        self.progress = Progress(phase, [begun] * (phase + 1))
        self._hold()

    def _reason(self, clock: Clock) -> str:
        """Why the running phase ends, for a report."""
        until = self.plan[self.phase].until
        return "" if until is None else until.reason(self.progress.trigger, clock)

    def _change(self, progress: Progress) -> None:
        session, before = self.session, self.phase
        clock = progress.starts[-1]
        reason = self._reason(clock)
        before_change(session.module)
        restored = self._best.restore(session.module) if self.owner.restore_best else None
        for parameter in session.module.parameters():
            parameter.grad = None  # accumulated in the phase that has ended
        newly_trained = self.resolved.fresh(progress.phase, before)
        session.since.update(dict.fromkeys(newly_trained, clock))
        if self.owner.drop_optimizer_state:
            self._drop_state(self.resolved.fresh(before, progress.phase))
        self.progress = progress
        self.steps.mark(len(progress.starts))
        self._hold()
        layers = [layer.name for layer in self.stack if any(p.requires_grad for p in layer.parameters())]
        monitor, verbose = self.owner.monitor, self.owner.verbose and self.prints_changes
        if not self._is_told:
            # The optimizers may have been replaced since the start.
            now, given, trainer = [dict.fromkeys(newly_trained)], session.holds.given, session.trainer
            self._is_told = checks.warn_of_layers_left_out(self._name, self.stack, now, trainer, session.module, given)
        session.announcer.change_phase(
            PhaseChange(self.plan, self.phase, layers, self.stack.names, monitor, restored, verbose, clock, reason)
        )

    def _drop_state(self, parameters: Iterable[Parameter]) -> None:
        optimizers = [each for held in self.session.trainer.optimizers for each in (held, *driven_by(held))]
        for optimizer, parameter in product(optimizers, parameters):
            optimizer.state.pop(parameter, None)

    def _hold(self) -> None:
        session = self.session
        if session.holds.hold(self.owner, *self.resolved.freezes[self.phase]):
            with session.requires_grad_as_given():
                resynchronise(session.trainer, session.module)

    def end_batch(self, batch_idx: int) -> None:  # noqa: D102
        trainer = self.session.trainer
        self._due_in_epoch = trainer.current_epoch if validation_is_due(trainer, batch_idx) else None

    def end_validation(self) -> None:  # noqa: D102
        session, watched = self.session, self._watched()
        if session.trainer.sanity_checking:
            checks.warn_of_misspelt_metrics(self._name, watched, session.trainer)
            return
        self._due_in_epoch = None
        if not self.progress.starts:
            return
        values = {name: read_metric(session.trainer, self._name, name, session.is_first) for name in watched}
        self.progress = phases.observe(self.resolved.plan, self.progress, values)
        if self.owner.restore_best and self.owner.monitor is not None:
            self._best.observe(session.module, values[self.owner.monitor])

    def _watched(self) -> list[str]:
        names = list(phases.monitors(self.resolved.plan))
        if self.owner.restore_best and self.owner.monitor is not None and self.owner.monitor not in names:
            names.append(self.owner.monitor)
        return names

    # ------------------------------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The schedule's state as plain data, with the tensors of the best weights."""
        return {
            **self.progress.state_dict(),
            "plan": [str(phase) for phase in self.resolved.plan],
            "layers": self._signature,
            "awaited": self._due_in_epoch,
            "best": self._best.state_dict(),
            "steps": self.steps.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; in a fit, the phase is put into effect at once.

        Raises:
            ConfigurationError: If the state is that of another schedule, or of other layers.
        """
        session = self._session
        is_fitting = session is not None and session.is_built  # a test or a prediction has no schedule to go on with
        if is_fitting:
            checks.check_same_schedule(self._name, state, self.resolved.plan, self._signature)
        self.progress = Progress.from_state_dict(state)
        self._best.load_state_dict(state["best"])
        self.steps.load_state_dict(state["steps"])
        self._due_in_epoch = state["awaited"]
        if session is not None and is_fitting:
            for phase, clock in enumerate(self.progress.starts):
                session.since.update(dict.fromkeys(self.resolved.fresh(phase, phase - 1), clock))
            self._hold()

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle is the configuration and the progress, never the run.
        return {**vars(self), "resolved": ResolvedPhases(self.resolved.plan), "_session": None, "stack": None}

    @property
    def _name(self) -> str:
        return type(self.owner).__name__
