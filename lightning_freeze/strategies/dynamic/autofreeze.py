"""AutoFreeze: a growing prefix of layers whose gradients have settled is frozen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import Groups
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.strategies.candidates import candidates
from lightning_freeze.strategies.dynamic.dynamic_freezing import DynamicFreezing
from lightning_freeze.strategies.dynamic.policies import MeasuringPolicy
from lightning_freeze.strategies.dynamic.statistics import NOTHING_MEASURED, Statistics


class GrowingPrefix(MeasuringPolicy):
    """Freezes the layers below the first one whose gradient still changes much; never unfreezes one.

    The gradients of a turn are added up, and the L1 norm of the sum is compared with that of the turn before. A layer
    counts as settled while its relative change is below a percentile of those of all layers that train.

    Args:
        percentile: The percentile, from 0 to 100; 0 freezes nothing, 100 everything below the layer that
            changes most.

    Raises:
        ConfigurationError: If ``percentile`` is out of range.
    """

    measures: ClassVar[Literal["gradient", "fisher", "update"]] = "gradient"

    def __init__(self, percentile: float = 50.0) -> None:
        check_arguments(GrowingPrefix, locals())
        if not 0 <= percentile <= 100:
            raise ConfigurationError(f"GrowingPrefix(percentile={percentile!r}): expected a number from 0 to 100.")
        self.percentile = percentile

    def choose(  # noqa: D102
        self, layers: Sequence[str], turn: int, statistics: Statistics = NOTHING_MEASURED
    ) -> Sequence[str]:
        active = [name for name in layers if name in statistics.trained] or list(layers)
        before, now = statistics.previous, statistics.latest
        if not all(name in before and name in now for name in active):
            return active  # there is nothing to compare yet
        changes = [relative_change(before[name], now[name]) for name in active]
        threshold = float(torch.quantile(torch.tensor(changes, dtype=torch.float64), self.percentile / 100))
        first = next((index for index, change in enumerate(changes) if change >= threshold), len(active) - 1)
        return active[first:]


def relative_change(before: float, now: float) -> float:
    """The change of a norm, relative to the norm before; 0 for a layer that has no gradient now, as published."""
    return abs(before - now) / (before or now) if now > 0 else 0.0


class AutoFreeze(DynamicFreezing):
    """Freezes more and more of the first layers, as their gradients settle (AutoFreeze).

    AutoFreeze (Liu et al., "AutoFreeze: Automatically Freezing Model Blocks to Accelerate Fine-tuning", 2021,
    arXiv:2102.01386) divides a run into intervals. It adds up the gradients of each interval, and compares the norms
    of the sums with those of the interval before. The blocks below the first one whose relative change reaches a
    percentile of all changes are frozen for the rest of the run. Backward then stops above them, and a
    :class:`FrozenPrefixCache` computes them once.

    Args:
        num_intervals: How many intervals the run has, 1 or more; 10 in the published code. The first two only measure.
        percentile: The percentile of the changes, from 0 to 100; 50 in the paper.
        layers: Selector of the blocks that can be frozen; all by default.
        always: Selector of what trains to the end. What lies below all of ``layers``, such as the embeddings, trains
            until the first of them is frozen.
        groups: See :class:`PhasedFineTuning`.
        frozen_eval: See :class:`PhasedFineTuning`.
        verbose: See :class:`DynamicFreezing`.
        save_frozen: See :class:`PhasedFineTuning`.

    Raises:
        ConfigurationError: If a number is out of range, or the length of the run is unknown.
    """

    def __init__(
        self,
        num_intervals: int = 10,
        percentile: float = 50.0,
        layers: str = ":",
        always: str | None = "head",
        groups: Groups | None = None,
        frozen_eval: bool = True,
        verbose: bool = True,
        save_frozen: bool = True,
    ) -> None:
        check_arguments(AutoFreeze, locals())
        if num_intervals < 1:
            raise ConfigurationError(
                f"AutoFreeze(num_intervals={num_intervals!r}): expected a whole number of intervals, 1 or more."
            )
        self.num_intervals = num_intervals
        self.percentile = percentile
        self._begin(GrowingPrefix(percentile), None, layers, always, True, groups, frozen_eval, verbose, save_frozen)

    def below(self, stack: LayerStack) -> list[str]:
        """Names of the layers below all that can be frozen."""
        lowest = min(stack[name].index for name in self.choices(stack))
        return candidates((layer for layer in stack if layer.index < lowest), self.fixed(stack) | self._idle)

    def trained_beside(self, stack: LayerStack, chosen: Sequence[str]) -> list[str]:  # noqa: D102
        below = self.below(stack) if len(chosen) == len(self.choices(stack)) else []
        return [*below, *super().trained_beside(stack, chosen)]

    def turn_length(self) -> int:  # noqa: D102
        assert self._session is not None
        trainer = self._session.trainer
        steps = trainer.estimated_stepping_batches - trainer.global_step
        if math.isinf(steps) or steps < 1:
            raise ConfigurationError(
                "AutoFreeze divides the run into intervals, so it needs its length: give Trainer(max_epochs=...) or "
                "max_steps=..."
            )
        return max(1, int(steps) // self.num_intervals)

    def __repr__(self) -> str:
        return (
            f"AutoFreeze(num_intervals={self.num_intervals!r}, percentile={self.percentile!r}, "
            f"layers={self.layers_to_choose!r}, always={self.always!r})"
        )
