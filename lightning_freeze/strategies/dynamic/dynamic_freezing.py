"""Dynamic freezing: other layers train in each turn, as a policy chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning.pytorch import Trainer

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import Groups
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.strategies.dynamic.chosen_layers import checked_choice
from lightning_freeze.strategies.dynamic.measuring.turn_measurement import TurnMeasurement
from lightning_freeze.strategies.dynamic.policies import MeasuringPolicy, Policy
from lightning_freeze.strategies.dynamic.statistics import Statistics
from lightning_freeze.strategies.dynamic.turns import TurnByTurn


class DynamicFreezing(TurnByTurn):
    """Trains other layers in each turn of ``interval`` optimizer steps, as a policy chooses.

    The optimizer holds all layers from the start, and skips those that are frozen. Under DDP, what trains is
    synchronised in every turn. A run that is resumed anywhere goes on with the turns of the straight run. What a
    :class:`MeasuringPolicy` asks for is measured on the training's own gradients and steps.

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
        save_frozen: See :class:`PhasedFineTuning`.

    Raises:
        ConfigurationError: If a selector matches nothing, a number is out of range, or the module optimizes manually.

    Example:
        >>> DynamicFreezing(RandomLayers(count=2), interval=20)  # doctest: +SKIP
    """

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
        save_frozen: bool = True,
    ) -> None:
        check_arguments(DynamicFreezing, locals())
        self._begin(policy, interval, layers, always, drop_optimizer_state, groups, frozen_eval, verbose, save_frozen)

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
        save_frozen: bool,
    ) -> None:
        self.policy = policy
        super().__init__(interval, layers, always, drop_optimizer_state, groups, frozen_eval, verbose, save_frozen)

    def preview(self, stack: LayerStack) -> Sequence[Sequence[str]]:  # noqa: D102
        layers = self.choices(stack)
        return [self._checked(turn, chosen, layers) for turn, chosen in enumerate(self.policy.preview(layers))]

    def choose(self, stack: LayerStack, turn: int, statistics: Statistics) -> Sequence[str]:  # noqa: D102
        layers = self.choices(stack)
        if isinstance(self.policy, MeasuringPolicy):
            return self._checked(turn, self.policy.choose(layers, turn, statistics), layers)
        return self._checked(turn, self.policy.choose(layers, turn), layers)

    def _checked(self, turn: int, chosen: object, layers: Sequence[str]) -> tuple[str, ...]:
        names = checked_choice(type(self).__name__, self.policy, turn, chosen, layers)
        if not names and not self.always:
            raise ConfigurationError(
                f"{type(self).__name__}(always=None): {self.policy!r} chose no layers for turn {turn}, so nothing "
                f"would train. Expected one layer at least, or always='head'."
            )
        return names

    def turns_to_reach_all(self, stack: LayerStack) -> int | None:  # noqa: D102
        return self.policy.turns_to_reach_all(self.choices(stack))

    def measurement(self, stack: LayerStack, chosen: Sequence[str]) -> TurnMeasurement:  # noqa: D102
        return TurnMeasurement(self.policy, stack, self.choices(stack), chosen)

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}({self.policy!r}, interval={self.interval!r}, {self.layers_to_choose!r}, {self.always!r})"


def steps_in_epoch(trainer: Trainer) -> float:
    """Optimizer steps in one epoch; infinite if the length of the training data is unknown."""
    batches = float(trainer.num_training_batches)
    return batches if math.isinf(batches) else math.ceil(batches / trainer.accumulate_grad_batches)
