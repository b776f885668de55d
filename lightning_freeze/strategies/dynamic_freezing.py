"""Dynamic freezing: other layers train in each turn, as a policy chooses."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import Groups
from lightning_freeze.callbacks.phased_fine_tuning import PhasedFineTuning
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.analysis.unused_copies import layers_without_adapters
from lightning_freeze.schedule.phases import Phase
from lightning_freeze.schedule.triggers import StepTrigger
from lightning_freeze.session.session import Session
from lightning_freeze.strategies.dynamic_runner import DynamicRunner
from lightning_freeze.strategies.policies import Policy

_ROUNDS = 2  # how many times the number of layers, in turns, are looked at before the run


class DynamicFreezing(PhasedFineTuning):
    """Trains other layers in each turn of ``interval`` optimizer steps, as a policy chooses.

    The optimizer holds all layers from the start, and skips those that are frozen. Under DDP, what trains is
    synchronised in every turn. A run that is resumed anywhere goes on with the turns of the straight run.

    Args:
        policy: Chooses the layers of a turn from ``layers``.
        interval: How many optimizer steps a turn lasts, 1 or more.
        layers: Selector of the layers that the policy chooses from; blocks by default.
        always: Selector of what trains in every turn, such as ``"head"`` or ``"embeddings,head"``; ``None`` for
            nothing. All other layers stay frozen.
        drop_optimizer_state: Whether the optimizer forgets what it has of a layer when the layer is frozen again, which
            frees the memory.
        groups: See :class:`PhasedFineTuning`.
        frozen_eval: See :class:`PhasedFineTuning`.
        verbose: Whether to print the table of layers at the start and the end of a fit.

    Raises:
        ConfigurationError: If a selector matches nothing, a number is out of range, or the module optimizes manually.

    Example:
        >>> DynamicFreezing(RandomLayers(count=2), interval=20)  # doctest: +SKIP
    """

    does_nothing_but_phases = False
    warns_of_wasted_backward = False  # what trains below frozen layers is the policy's choice

    def __init__(
        self,
        policy: Policy,
        interval: int = 20,
        layers: str = ":",
        always: str | None = "head",
        drop_optimizer_state: bool = True,
        groups: Groups | None = None,
        frozen_eval: bool = True,
        verbose: bool = True,
    ) -> None:
        check_arguments(DynamicFreezing, locals())
        self._begin(policy, interval, layers, always, drop_optimizer_state, groups, frozen_eval, verbose)

    def _begin(
        self,
        policy: Policy,
        interval: int | None,
        layers: str,
        always: str | None,
        drop_optimizer_state: bool,
        groups: Groups | None,
        frozen_eval: bool,
        verbose: bool,
    ) -> None:
        if interval is not None and interval < 1:
            raise ConfigurationError(
                f"{type(self).__name__}(interval={interval!r}): expected a whole number of optimizer steps, 1 or more."
            )
        self.policy = policy
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
        )
        self._runner = self._make_runner()

    def prepare(self, session: Session) -> None:  # noqa: D102
        with session.holds.lifted():
            self._idle = layers_without_adapters(self.stack)
        super().prepare(session)

    def build_phases(self, stack: LayerStack) -> list[Phase]:  # noqa: D102
        turns = range(_ROUNDS * len(self.choices(stack)))
        return list({phase.train: phase for phase in (self.phase_of_turn(stack, turn) for turn in turns)}.values())

    def choices(self, stack: LayerStack) -> list[str]:
        """Names of the layers that the policy chooses from, in the order of the data flow."""
        fixed = {layer.name for layer in stack.select(self.always).layers} if self.always else set()
        found = [
            layer.name
            for layer in sorted(stack.select(self.layers_to_choose).layers, key=lambda layer: layer.index)
            if layer.name not in fixed | self._idle and not layer.is_bystander and layer.parameters()
        ]
        if not found:
            raise ConfigurationError(
                f"{type(self).__name__} has no layers to choose from in {self.layers_to_choose!r} beside "
                f"{self.always!r}; expected some of {', '.join(stack.names)}."
            )
        return found

    def phase_of_turn(self, stack: LayerStack, turn: int) -> Phase:
        """What trains in a turn."""
        chosen = self.policy.choose(self.choices(stack), turn)
        return Phase(",".join([*chosen, *([self.always] if self.always else [])]), StepTrigger(self.interval or 1))

    def turn_length(self) -> int:
        """How many optimizer steps a turn lasts."""
        assert self.interval is not None
        return self.interval

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        super().setup(trainer, pl_module, stage)
        if stage == TrainerFn.FITTING and not pl_module.automatic_optimization:
            raise ConfigurationError(
                f"{type(self).__name__} counts the steps of one optimizer, and {type(pl_module).__name__} optimizes "
                f"manually. Use automatic optimization."
            )

    def _make_runner(self) -> DynamicRunner:
        return DynamicRunner(self, self.phases, self.phase_of_turn, self.turn_length)

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

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}({self.policy!r}, interval={self.interval!r}, {self.layers_to_choose!r}, {self.always!r})"


def steps_in_epoch(trainer: Trainer) -> float:
    """Optimizer steps in one epoch; infinite if the length of the training data is unknown."""
    batches = float(trainer.num_training_batches)
    return batches if math.isinf(batches) else math.ceil(batches / trainer.accumulate_grad_batches)
