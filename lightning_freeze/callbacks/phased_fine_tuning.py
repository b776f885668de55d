"""Phases: which layers train when, in its general form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.nn import Module, Parameter

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import FreezingCallback, Groups
from lightning_freeze.layers import LayerStack
from lightning_freeze.schedule import checks
from lightning_freeze.schedule.phases import Phase, check_phases, monitors
from lightning_freeze.session.phase_rates import PhaseRates
from lightning_freeze.session.phase_runner import PhaseRunner
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
            restarts the count at each phase.
        drop_optimizer_state: Whether the optimizer forgets what it has of a layer (momentum, second moments) when the
            layer is frozen again. That frees the memory, and a layer that is unfrozen again starts
            without outdated momentum.
        groups: An explicit, ordered map from layer name to module-name prefixes, instead of the layers that are found
            automatically. Parameters that the map leaves out stay trainable and untouched.
        frozen_eval: Whether frozen modules are in eval mode: dropout off, BatchNorm statistics unchanged.
        verbose: Whether to print the table of layers, and one line at each change of phase.
        unfreeze_all: Whether the schedule also decides about parameters that the module had frozen itself, in its
            ``__init__`` for instance. By default they stay frozen; the weights below adapters of PEFT always do.
        save_frozen: Whether checkpoints hold weights that no phase so far has trained. ``False`` leaves out those that
            are as they were when the module was built; see :class:`LayerFreezing`. A layer is in the checkpoints as
            soon as it trains. So that earlier checkpoints can be loaded into the same module after that, its base
            weights are copied to host memory then.

    Raises:
        ConfigurationError: If there is no phase, a phase trains nothing or can never end, a selector matches nothing,
            a count is out of range, or another callback decides about the same layers.
    """

    skips_idle_phases = False
    does_nothing_but_phases = True  # so that a PhasedFineTuning with the same phases can take its place

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
        unfreeze_all: bool = False,
        save_frozen: bool = True,
    ) -> None:
        check_arguments(PhasedFineTuning, locals(), needs=NEEDS, own=("phases",))
        super().__init__(groups=groups, frozen_eval=frozen_eval, verbose=verbose, save_frozen=save_frozen)
        name = type(self).__name__
        with self._named_in_errors():
            check_phases(phases)
        checks.check_options(name, monitor, mode, warmup_steps)
        watched = monitors(phases)
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
        self.unfreeze_all = unfreeze_all
        self._runner = self._make_runner()

    def _make_runner(self) -> PhaseRunner:
        return PhaseRunner(self, self.phases)

    @property
    def schedule(self) -> PhaseRunner:
        """The phases at work."""
        return self._runner

    @property
    def phase(self) -> int:
        """Index of the running phase, 0 for the first."""
        return self._runner.phase

    @property
    def plan(self) -> list[Phase]:
        """The phases of the module that is being fitted, or was fitted last."""
        return self._runner.plan

    @property
    def freezes(self) -> list[tuple[Sequence[Parameter], Sequence[Module]]]:
        """For each phase, what it holds frozen and what it puts in eval mode."""
        return self._runner.freezes

    def frozen_ahead(self) -> list[tuple[Sequence[Parameter], Sequence[Module]]]:
        """For the present phase and each later one of a running fit, what is frozen by anything, and in eval mode."""
        return self._runner.frozen_ahead()

    def build_phases(self, stack: LayerStack) -> list[Phase]:
        """The phases for a module with these layers."""
        return self.phases

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        if stage == TrainerFn.FITTING:
            self._runner = self._make_runner()
        super().setup(trainer, pl_module, stage)

    def prepare(self, session: Session) -> None:  # noqa: D102
        self._runner.join(session, self.stack, self.build_phases(self.stack))
        session.rates.sources.append(PhaseRates(self._runner, self.warmup_steps))

    def check(self, session: Session) -> None:  # noqa: D102
        self._runner.check(drop_idle=self.skips_idle_phases)

    @property
    def state_key(self) -> str:
        """Tells two of these callbacks apart in a checkpoint."""
        return self._generate_state_key(plan=repr(self), groups=self.groups)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {**self._runner.state_dict(), "rates": self.rates_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        self._runner.load_state_dict(state_dict)
        self._rates = state_dict["rates"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over the state of a schedule that differs from this one only in phases that have not begun."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        states = checkpoint.get("callbacks", {})
        if self.state_key in states:
            return
        taken = {callback.state_key for callback in trainer.callbacks}  # type: ignore[attr-defined]
        unclaimed = [key for key, s in states.items() if key not in taken and isinstance(s, dict) and "starts" in s]
        own = [key for key in unclaimed if key.startswith(f"{type(self).__qualname__}{{")]
        if len(own or unclaimed) == 1:
            self.load_state_dict(states[(own or unclaimed)[0]])

    def _leave(self) -> None:
        self._runner.leave()
        super()._leave()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(phases={self.phases!r})"
