"""Callbacks whose layers are chosen anew in each turn of a few optimizer steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_freeze.callbacks.layer_callback import Groups
from lightning_freeze.callbacks.phased_fine_tuning import PhasedFineTuning
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.analysis.unused_copies import layers_without_adapters
from lightning_freeze.schedule.phases import Phase
from lightning_freeze.schedule.triggers import StepTrigger
from lightning_freeze.session.session import Session
from lightning_freeze.strategies.candidates import candidates
from lightning_freeze.strategies.dynamic.dynamic_runner import DynamicRunner
from lightning_freeze.strategies.dynamic.measuring.turn_measurement import TurnMeasurement
from lightning_freeze.strategies.dynamic.statistics import Statistics


class TurnByTurn(PhasedFineTuning):
    """Trains the layers that :meth:`choose` names in each turn, beside those that train in every turn.

    Args:
        interval: How many optimizer steps a turn lasts; ``None`` where :meth:`turn_length` decides.
        layers: Selector of the layers to choose from.
        always: Selector of what trains in every turn, ``None`` for nothing.
        drop_optimizer_state: See :class:`PhasedFineTuning`.
        groups: See :class:`PhasedFineTuning`.
        frozen_eval: See :class:`PhasedFineTuning`.
        verbose: Whether to print the table of layers at the start and the end of a fit.
        save_frozen: See :class:`PhasedFineTuning`.
    """

    does_nothing_but_phases = False
    warns_of_wasted_backward = False  # what trains below frozen layers is chosen on purpose
    begins_turns_afresh = False
    """Whether each turn begins with an empty optimizer state, also that of layers that trained in the turn before."""

    def __init__(
        self,
        interval: int | None,
        layers: str,
        always: str | None,
        drop_optimizer_state: bool,
        groups: Groups | None,
        frozen_eval: bool,
        verbose: bool,
        save_frozen: bool,
    ) -> None:
        if interval is not None and interval < 1:
            raise ConfigurationError(
                f"{type(self).__name__}(interval={interval!r}): expected a whole number of optimizer steps, 1 or more."
            )
        self.interval = interval
        self.layers_to_choose = layers
        self.always = always
        self._idle: set[str] = set()  # layers that train nothing when they are unfrozen
        super().__init__(
            phases=[Phase(layers)],
            guard_early_stopping=False,
            drop_optimizer_state=drop_optimizer_state,
            groups=groups,
            frozen_eval=frozen_eval,
            verbose=verbose,
            save_frozen=save_frozen,
        )

    @abstractmethod
    def choose(self, stack: LayerStack, turn: int, statistics: Statistics) -> Sequence[str]:
        """The layers that train in a turn, beside ``always``; a pure function of its arguments and the settings."""

    @abstractmethod
    def preview(self, stack: LayerStack) -> Sequence[Sequence[str]]:
        """The choices that are checked and shown before a run, that of the first turn first."""

    def turns_to_reach_all(self, stack: LayerStack) -> int | None:
        """How many turns it takes until each layer has trained; ``None`` if that is open, or no aim."""
        return None

    def measurement(self, stack: LayerStack, chosen: Sequence[str]) -> TurnMeasurement:
        """What is measured in a turn in which these layers train; nothing by default."""
        return TurnMeasurement(None, stack, [], chosen)

    @property
    def chooses_again(self) -> bool:
        """Whether a layer that was not chosen may be chosen later in the fit."""
        return True

    def turn_length(self) -> int:
        """How many optimizer steps a turn lasts."""
        assert self.interval is not None
        return self.interval

    def prepare(self, session: Session) -> None:  # noqa: D102
        with session.holds.lifted():
            self._idle = layers_without_adapters(self.stack)
        super().prepare(session)

    def build_phases(self, stack: LayerStack) -> list[Phase]:  # noqa: D102
        phases = [self.phase_of(stack, chosen) for chosen in self.preview(stack)]
        return list({phase.train: phase for phase in phases}.values())

    def choices(self, stack: LayerStack) -> list[str]:
        """Names of the layers that the policy chooses from, in the order of the data flow."""
        found = candidates(stack.select(self.layers_to_choose).layers, self.fixed(stack) | self._idle)
        if not found:
            raise ConfigurationError(
                f"{type(self).__name__} has no layers to choose from in {self.layers_to_choose!r} beside "
                f"{self.always!r}; expected some of {', '.join(stack.names)}."
            )
        return found

    def fixed(self, stack: LayerStack) -> set[str]:
        """Names of the layers that train in every turn."""
        return {layer.name for layer in stack.select(self.always).layers} if self.always else set()

    def trained_beside(self, stack: LayerStack, chosen: Sequence[str]) -> list[str]:
        """Selectors of what trains in a turn beside the chosen layers."""
        return [self.always] if self.always else []

    def phase_of(self, stack: LayerStack, chosen: Sequence[str]) -> Phase:
        """The phase in which these layers train."""
        return Phase(",".join([*chosen, *self.trained_beside(stack, chosen)]), StepTrigger(self.interval or 1))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        super().setup(trainer, pl_module, stage)
        if stage == TrainerFn.FITTING and not pl_module.automatic_optimization:
            raise ConfigurationError(
                f"{type(self).__name__} counts the steps of one optimizer, and {type(pl_module).__name__} optimizes "
                f"manually. Use automatic optimization."
            )

    _runner: DynamicRunner

    def _make_runner(self) -> DynamicRunner:
        return DynamicRunner(self, self.phases)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with a policy other than the one that the checkpoint was made with."""
        states = checkpoint.get("callbacks", {})
        own = [key for key in states if key.startswith(f"{type(self).__qualname__}{{")]
        if own and self.state_key not in states and self._session is not None:
            raise ConfigurationError(
                f"The checkpoint was made with another {type(self).__name__}: {own[0]}; now: {self.state_key}. Resume "
                f"with the same options, or begin a new run from the weights alone."
            )
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
