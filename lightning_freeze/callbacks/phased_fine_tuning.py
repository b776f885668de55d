"""Phases: which layers train when, in its general form."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import product
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.nn import Module, Parameter

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.base import FreezingCallback, Groups
from lightning_freeze.compatibility.early_stopping import PatienceGuard
from lightning_freeze.distributed import before_change, resynchronise
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.rates.optimizer_steps import OptimizerSteps, index_of_optimizer
from lightning_freeze.report.layer_table import phase_line
from lightning_freeze.schedule import checks
from lightning_freeze.schedule import phases as schedule
from lightning_freeze.schedule.best_weights import BestWeights
from lightning_freeze.schedule.missed_validation import catch_up, validation_is_due
from lightning_freeze.schedule.monitored_metrics import read_metric
from lightning_freeze.schedule.phases import Phase, Progress
from lightning_freeze.schedule.resolved_phases import ResolvedPhases
from lightning_freeze.schedule.triggers import Clock
from lightning_freeze.session.session import Session

#: Arguments that have no effect without another one.
NEEDS = {"monitor": "restore_best", "mode": "restore_best"}


class PhasedFineTuning(FreezingCallback):
    """Trains one set of layers after another; a trigger says when the next phase begins.

    A phase may also freeze again what trained before. The phase is decided at the start of each training batch from
    the epoch, the optimizer step and the validations seen, so a trigger takes effect at the next batch, in mid-epoch
    too. Gradients that were accumulated before a change of phase are dropped.

    Args:
        phases: The phases in their order. All but the last one need a trigger.
        restore_best: Whether a new phase begins with the best weights of the phase just ended, rather than the last
            ones. The optimizer's state stays as it is.
        monitor: The metric that says which weights are best; by default the one that the phase's trigger watches.
        mode: Whether a lower (``"min"``) or a higher (``"max"``) value of ``monitor`` is better; by default as the
            triggers have it, ``"min"`` for a metric that they do not watch.
        warmup_steps: Over how many optimizer steps the learning rate of newly unfrozen layers rises linearly to its
            full value. An adaptive optimizer's first step on a new layer is otherwise as large as the learning rate in
            every weight. With several optimizers, the steps of the one that holds the layer count.
        guard_early_stopping: Whether Lightning's ``EarlyStopping`` has endless patience while phases remain, and
            counts it anew from the start of each phase.
        drop_optimizer_state: Whether the optimizer forgets what it has of a layer (momentum, second moments) when the
            layer is frozen again. That frees the memory, and a layer unfrozen once more begins anew instead of with
            momentum of long ago.
        groups: An explicit, ordered map from layer name to module-name prefixes, instead of the layers that are found
            automatically. Parameters that the map leaves out stay trainable and untouched.
        frozen_eval: Whether frozen modules are in eval mode: dropout off, BatchNorm statistics still.
        verbose: Whether to print the table of layers, and one line at each change of phase.

    Raises:
        ConfigurationError: If there is no phase, a phase trains nothing or can never end, a selector matches nothing,
            a count is out of range, or another callback decides about the same layers.
    """

    skips_idle_phases = False

    def __init__(
        self,
        phases: Sequence[Phase],
        restore_best: bool = False,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        warmup_steps: int = 0,
        guard_early_stopping: bool = True,
        drop_optimizer_state: bool = False,
        groups: Groups | None = None,
        frozen_eval: bool = True,
        verbose: bool = True,
    ) -> None:
        check_arguments(PhasedFineTuning, locals(), needs=NEEDS, own=("phases",))
        super().__init__(groups=groups, frozen_eval=frozen_eval, verbose=verbose)
        name = type(self).__name__
        with self._explained():
            schedule.check_phases(phases)
        checks.check_options(name, monitor, mode, warmup_steps)
        watched = schedule.monitors(phases)
        if restore_best and monitor is None:
            monitor = checks.only_metric(name, watched)
        mode = mode or (watched.get(monitor, "min") if monitor else "min")
        self.phases = list(phases)
        self.restore_best = restore_best
        self.monitor = monitor
        self.mode = mode
        self.warmup_steps = warmup_steps
        self.guard_early_stopping = guard_early_stopping
        self.drop_optimizer_state = drop_optimizer_state
        self._reset()

    def _reset(self) -> None:
        self._resolved = ResolvedPhases(self.phases)
        self._progress = Progress()
        self._steps = OptimizerSteps()
        self._best = BestWeights(self.mode)
        self._guards: list[PatienceGuard] = []
        self._rates: list[list[dict[str, Any]]] | None = None
        self._layers: list[dict[str, Any]] = []
        self._awaited: int | None = None  # the epoch of a validation that is due

    @property
    def phase(self) -> int:
        """Index of the running phase, 0 for the first."""
        return self._progress.phase

    @property
    def plan(self) -> list[Phase]:
        """The phases of the module that is being fitted, or was fitted last."""
        return list(self._resolved.plan)

    @property
    def steps_taken(self) -> int:
        """Steps that all optimizers have taken in this run, whether the trainer has seen them or not."""
        return self._steps.total

    @property
    def freezes(self) -> list[tuple[Sequence[Parameter], Sequence[Module]]]:
        """For each phase, what it holds frozen and what it puts in eval mode."""
        return list(self._resolved.freezes)

    def build_phases(self, stack: LayerStack) -> list[Phase]:
        """The phases for a module with these layers."""
        return self.phases

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        if stage == TrainerFn.FITTING:
            self._reset()
        super().setup(trainer, pl_module, stage)

    def prepare(self, session: Session) -> None:  # noqa: D102
        self._layers = self.stack.signature()
        self._resolved = ResolvedPhases.on(self.stack, self.build_phases(self.stack), self.frozen_eval)
        checks.check_phases_differ(type(self).__name__, self._resolved.plan, self._resolved.trains)
        session.holds.hold(self, *self._resolved.freezes[self.phase])
        session.rates.sources.append(self)

    def on_all_built(self, session: Session) -> None:  # noqa: D102
        super().on_all_built(session)
        governed = {p for layer in self.stack for p in layer.parameters()}
        for other in session.members:
            if other is self or not isinstance(other, PhasedFineTuning):
                continue
            if governed & {p for layer in other.stack for p in layer.parameters()}:
                raise ConfigurationError(
                    f"{type(self).__name__} and {type(other).__name__} both schedule the same layers; keep one of "
                    f"them, or give them groups that do not overlap."
                )
        checks.check_phases_train(self, self._resolved.plan, self._resolved.trains, session.holds)
        if self.skips_idle_phases:
            plan = self._resolved.without_idle(lambda parameter: session.holds.can_train(parameter, self))
            if len(plan) < len(self._resolved.plan):
                self._resolved = ResolvedPhases.on(self.stack, plan, self.frozen_eval)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        super().on_fit_start(trainer, pl_module)
        if self._session is not None:
            name, given = type(self).__name__, self._session.holds.given
            plan, trains = self._resolved.plan, self._resolved.trains
            checks.check_phases_are_optimized(name, plan, trains, trainer, pl_module, given)
            checks.warn_of_layers_left_out(name, self.stack, trains, trainer, given)
        self._steps.attach(trainer.optimizers)
        if self.guard_early_stopping:
            for stopping in trainer.early_stopping_callbacks:
                guard = PatienceGuard(stopping, lambda: self.phase < len(self._resolved.plan) - 1)
                guard.install()
                self._guards.append(guard)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        super().on_train_start(trainer, pl_module)
        if self._session is not None and self._session.is_running:
            checks.check_metrics_are_validated(type(self).__name__, self._watched(), trainer)
            checks.warn_if_too_long(type(self).__name__, self._resolved.plan, self._progress, trainer)
            if self._awaited is not None and self._watched():
                catch_up(trainer, self._awaited)

    def on_train_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._awaited = trainer.current_epoch if validation_is_due(trainer, batch_idx) else None

    def on_train_batch_start(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._session is not None and self._session.is_running:
            clock = Clock(trainer.current_epoch, trainer.global_step)
            progress = schedule.advance(self._resolved.plan, self._progress, clock)
            if progress.phase != self.phase:
                self._change(self._session, progress)
            elif not self._progress.starts:
                self._session.since.update(dict.fromkeys(self._resolved.trains[0], clock))
            self._progress = progress
            self._steps.mark(len(progress.starts))
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def _change(self, session: Session, progress: Progress) -> None:
        before_change(session.module)
        restored = self._best.restore(session.module) if self.restore_best else None
        for parameter in session.module.parameters():
            parameter.grad = None
        phases = self._resolved
        session.since.update(dict.fromkeys(phases.fresh(progress.phase, self.phase), progress.starts[-1]))
        if self.drop_optimizer_state:
            for optimizer, parameter in product(session.trainer.optimizers, phases.fresh(self.phase, progress.phase)):
                optimizer.state.pop(parameter, None)
        self._progress = progress
        self._steps.mark(len(progress.starts))
        if session.holds.hold(self, *phases.freezes[progress.phase]):
            resynchronise(session.trainer, session.module)
        for guard in self._guards:
            guard.restart()
        if self.verbose:
            session.module.print(phase_line(self, session, restored))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if self._session is None or not self._session.is_running:
            return
        if trainer.sanity_checking:
            checks.warn_of_misspelt_metrics(type(self).__name__, self._watched(), trainer)
            return
        self._awaited = None
        if not self._progress.starts:
            return
        values = {name: read_metric(self._session, type(self).__name__, name) for name in self._watched()}
        self._progress = schedule.observe(self._resolved.plan, self._progress, values)
        if self.restore_best and self.monitor is not None:
            self._best.observe(pl_module, values[self.monitor])

    def _watched(self) -> list[str]:
        names = list(schedule.monitors(self._resolved.plan))
        if self.restore_best and self.monitor is not None and self.monitor not in names:
            names.append(self.monitor)
        return names

    def rate_key(self, parameter: Parameter) -> Hashable:  # noqa: D102
        if not self.warmup_steps or self._session is None:
            return ()
        optimizer = index_of_optimizer(self._session.trainer.optimizers, parameter)
        return optimizer, tuple(parameter in trains for trains in self._resolved.trains)

    def rate_factor(self, key: Hashable) -> float:  # noqa: D102
        return 1.0

    def rate_ramp(self, key: Hashable) -> float:
        """Linear warm-up since the phase that unfroze the parameters, if that was not the first one."""
        session = self._session
        if session is None or not key:
            return 1.0
        optimizer: int
        trains_in: tuple[bool, ...]
        optimizer, trains_in = key  # type: ignore[misc]
        begun = schedule.unfrozen_in(trains_in, self.phase)
        if begun == 0:
            return 1.0
        taken = session.trainer.global_step - self._progress.starts[begun].step
        if not session.module.automatic_optimization:  # the trainer adds up what it sees of all optimizers
            taken = self._steps.since(optimizer, begun)
        return min(1.0, (taken + 1) / self.warmup_steps)

    @property
    def state_key(self) -> str:
        """Tells two of these callbacks apart in a checkpoint."""
        return self._generate_state_key(plan=repr(self), groups=self.groups)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        if self._session is not None:
            self._rates = self._session.rates.state_dict()
        return {
            **self._progress.state_dict(),
            "plan": [str(phase) for phase in self._resolved.plan],
            "layers": self._layers,
            "awaited": self._awaited,
            "best": self._best.state_dict(),
            "rates": self._rates,
            "steps": self._steps.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        session = self._session
        is_fitting = session is not None and session.is_built
        if is_fitting:  # a test or a prediction has no schedule to go on with
            checks.check_same_schedule(type(self).__name__, state_dict, self._resolved.plan, self._layers)
        self._progress = Progress.from_state_dict(state_dict)
        self._best.load_state_dict(state_dict["best"])
        self._rates = state_dict["rates"]
        self._steps.load_state_dict(state_dict["steps"])
        self._awaited = state_dict["awaited"]
        if session is not None and is_fitting:
            for phase, clock in enumerate(self._progress.starts):
                session.since.update(dict.fromkeys(self._resolved.fresh(phase, phase - 1), clock))
            session.rates.load_state_dict(self._rates)
            if session.holds.hold(self, *self._resolved.freezes[self.phase]):
                resynchronise(session.trainer, session.module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over the state of a schedule that differs from this one only in phases that have not begun."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        states = checkpoint.get("callbacks", {})
        if self.state_key in states:
            return
        taken = {callback.state_key for callback in trainer.callbacks}  # type: ignore[attr-defined]
        strays = [key for key, s in states.items() if key not in taken and isinstance(s, dict) and "starts" in s]
        own = [key for key in strays if key.startswith(f"{type(self).__qualname__}{{")]
        if len(own or strays) == 1:
            self.load_state_dict(states[(own or strays)[0]])

    def _leave(self) -> None:
        if self._session is not None:
            self._rates = self._session.rates.state_dict()
        for guard in self._guards:
            guard.remove()
        self._guards = []
        self._steps.detach()
        super()._leave()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_resolved": ResolvedPhases(self._resolved.plan), "_guards": []}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(phases={self.phases!r})"
