"""Gradual unfreezing, from the top layer down."""

from __future__ import annotations

from typing import Literal

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import Groups
from lightning_freeze.callbacks.phased_fine_tuning import NEEDS, PhasedFineTuning
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.schedule.phases import Phase, gradual_phases
from lightning_freeze.schedule.triggers import EpochTrigger, Trigger


class GradualUnfreezing(PhasedFineTuning):
    """Begins with the top of the model and unfreezes it layer by layer, from the top down.

    Gradual unfreezing is from ULMFiT (Howard and Ruder, 2018): the new head settles before the pre-trained layers
    move, and those nearest to the input, which hold the most general knowledge, move last and least. Layers that
    another callback freezes statically stay frozen, and no phase is spent on them.

    Args:
        trigger: When the next phase begins. ``EpochTrigger(1)``, the default, unfreezes with each epoch.
        start: Selector of what trains from the beginning. ``"head"`` means the top layer where a model has no head.
        layers_per_phase: How many more layers each phase unfreezes.
        stop: Selector of the lowest layer to unfreeze, such as ``"6"``; those below stay frozen. By default all layers
            are unfrozen in the end, the embeddings last.
        restore_best: See :class:`PhasedFineTuning`.
        monitor: See :class:`PhasedFineTuning`.
        mode: See :class:`PhasedFineTuning`.
        warmup_steps: See :class:`PhasedFineTuning`.
        guard_early_stopping: See :class:`PhasedFineTuning`.
        groups: See :class:`PhasedFineTuning`.
        frozen_eval: See :class:`PhasedFineTuning`.
        verbose: See :class:`PhasedFineTuning`.
        unfreeze_all: See :class:`PhasedFineTuning`.
        save_frozen: See :class:`PhasedFineTuning`.

    Raises:
        ConfigurationError: If a selector matches nothing, a count is not positive, or ``stop`` lies above ``start``.

    Examples:
        >>> GradualUnfreezing(trigger=EpochTrigger(2), layers_per_phase=2, stop="4")
        GradualUnfreezing(trigger=EpochTrigger(2), start='head', layers_per_phase=2, stop='4')
    """

    def __init__(
        self,
        trigger: Trigger = EpochTrigger(1),  # noqa: B008  (triggers are immutable)
        start: str = "head",
        layers_per_phase: int = 1,
        stop: str | None = None,
        restore_best: bool = False,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        warmup_steps: int = 0,
        guard_early_stopping: bool = True,
        groups: Groups | None = None,
        frozen_eval: bool = True,
        verbose: bool = True,
        unfreeze_all: bool = False,
        save_frozen: bool = True,
    ) -> None:
        check_arguments(GradualUnfreezing, locals(), needs=NEEDS, own=("stop",))
        # The phases follow from the layers of a module; until one is known, two stand for them in the checks of the
        # options.
        super().__init__(
            phases=[Phase(start, trigger), Phase("all")],
            restore_best=restore_best,
            monitor=monitor,
            mode=mode,
            warmup_steps=warmup_steps,
            guard_early_stopping=guard_early_stopping,
            groups=groups,
            frozen_eval=frozen_eval,
            verbose=verbose,
            unfreeze_all=unfreeze_all,
            save_frozen=save_frozen,
        )
        if layers_per_phase < 1:
            raise ConfigurationError(
                f"GradualUnfreezing(layers_per_phase={layers_per_phase!r}): expected a whole number of layers, 1 or "
                "more."
            )
        if stop is not None and not isinstance(stop, str):
            raise ConfigurationError(f"GradualUnfreezing(stop={stop!r}): expected a selector such as {str(stop)!r}.")
        self.trigger = trigger
        self.start = start
        self.layers_per_phase = layers_per_phase
        self.stop = stop

    def build_phases(self, stack: LayerStack) -> list[Phase]:  # noqa: D102
        return gradual_phases(stack, self.trigger, self.start, self.layers_per_phase, self.stop)

    skips_idle_phases = True

    def __repr__(self) -> str:
        return (
            f"GradualUnfreezing(trigger={self.trigger!r}, start={self.start!r}, "
            f"layers_per_phase={self.layers_per_phase!r}, stop={self.stop!r})"
        )
