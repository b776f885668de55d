"""SlimFit: the layers whose weights change most train."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import ClassVar, Literal

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import Groups
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.strategies.dynamic.dynamic_freezing import DynamicFreezing
from lightning_freeze.strategies.dynamic.policies import MeasuringPolicy
from lightning_freeze.strategies.dynamic.statistics import NOTHING_MEASURED, Statistics


class LargestUpdates(MeasuringPolicy):
    """Trains the layers whose weights changed most in the last step of the last turn in which they trained.

    A layer that has not trained yet counts as the one that changes most, so every layer trains once at first, in a
    random order.

    Args:
        freeze_rate: Share of the layers that is frozen, at least 0 and below 1. At least one layer trains.
        seed: Seed of the order of the first turns.

    Raises:
        ConfigurationError: If ``freeze_rate`` is out of range.
    """

    measures: ClassVar[Literal["gradient", "fisher", "update"]] = "update"

    def __init__(self, freeze_rate: float = 0.9, seed: int = 0) -> None:
        check_arguments(LargestUpdates, locals())
        if not 0 <= freeze_rate < 1:
            raise ConfigurationError(
                f"LargestUpdates(freeze_rate={freeze_rate!r}): expected a share, at least 0 and below 1."
            )
        self.freeze_rate = freeze_rate
        self.seed = seed

    def choose(  # noqa: D102
        self, layers: Sequence[str], turn: int, statistics: Statistics = NOTHING_MEASURED
    ) -> Sequence[str]:
        order = list(range(len(layers)))
        random.Random(self.seed).shuffle(order)
        # Sorting is stable: of equal ones, such as those that have not trained yet, the first in the order is taken.
        ranked = sorted(order, key=lambda index: -statistics.latest.get(layers[index], math.inf))
        chosen = set(ranked[: len(layers) - min(int(self.freeze_rate * len(layers)), len(layers) - 1)])
        return [name for index, name in enumerate(layers) if index in chosen]

    def measured_steps(self, interval: int) -> int:
        """The last step of each turn."""
        return 1

    def preview(self, layers: Sequence[str]) -> list[Sequence[str]]:
        """The first turns, up to the one in which every layer has trained once."""
        chosen, statistics = [self.choose(layers, 0)], NOTHING_MEASURED
        while len(statistics.latest) < len(layers):
            statistics = statistics.after(chosen[-1], dict.fromkeys(chosen[-1], 0.0))
            chosen.append(self.choose(layers, len(chosen), statistics))
        return chosen[:-1]


class SlimFit(DynamicFreezing):
    """Trains the few layers whose weights change most, and freezes the others (the scheduling of SlimFit).

    SlimFit (Ardakani et al., "SlimFit: Memory-Efficient Fine-Tuning of Transformer-based Models Using Training
    Dynamics", NAACL 2024, arXiv:2305.18513) ranks layers by the mean relative change of their weights in the last step
    in which they trained, and trains the first ones at the next step. A layer that hardly moves is frozen until the
    others move less.

    This is the choice of layers only. The paper also quantises and prunes activations. It ranks single weight matrices;
    here whole layers are ranked, so that backward can stop and frozen layers are in eval mode.

    Args:
        freeze_rate: Share of the layers that is frozen; from 0.75 to 0.95 in the published code, 0.9 most often.
        interval: How many optimizer steps pass between two choices; 1 in the paper. A longer interval is cheaper
            under DDP and ``torch.compile``.
        layers: Selector of the layers to choose from.
        always: Selector of what trains all the time; a new head has to.
        seed: Seed of the order in which the layers train at first.
        drop_optimizer_state: Whether the optimizer forgets what it has of a layer when the layer is frozen again. The
            published code keeps it: a layer may come back at the next step.
        groups: See :class:`PhasedFineTuning`.
        frozen_eval: See :class:`PhasedFineTuning`.
        verbose: See :class:`DynamicFreezing`.
        save_frozen: See :class:`PhasedFineTuning`.

    Raises:
        ConfigurationError: If a number is out of range, or a selector matches nothing.
    """

    def __init__(
        self,
        freeze_rate: float = 0.9,
        interval: int = 1,
        layers: str = "all",
        always: str | None = "head",
        seed: int = 0,
        drop_optimizer_state: bool = False,
        groups: Groups | None = None,
        frozen_eval: bool = True,
        verbose: bool = True,
        save_frozen: bool = True,
    ) -> None:
        check_arguments(SlimFit, locals())
        if not 0 <= freeze_rate < 1:
            raise ConfigurationError(f"SlimFit(freeze_rate={freeze_rate!r}): expected a share, at least 0 and below 1.")
        policy = LargestUpdates(freeze_rate, seed)
        self._begin(policy, interval, layers, always, drop_optimizer_state, groups, frozen_eval, verbose, save_frozen)
