"""FUN: the layer with the most Fisher information is unfrozen next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from lightning_freeze.arguments import check_arguments
from lightning_freeze.callbacks.layer_callback import Groups
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.strategies.dynamic.dynamic_freezing import DynamicFreezing
from lightning_freeze.strategies.dynamic.policies import MeasuringPolicy
from lightning_freeze.strategies.dynamic.statistics import NOTHING_MEASURED, Statistics


class LargestFisherNext(MeasuringPolicy):
    """Begins with the top layer, and unfreezes in each turn the frozen layer with the largest tr Fisher.

    Args:
        batches: On how many optimizer steps, the last ones of each turn, the frozen layers are measured, 1 or more.

    Raises:
        ConfigurationError: If ``batches`` is not positive.
    """

    measures: ClassVar[Literal["gradient", "fisher", "update"]] = "fisher"

    def __init__(self, batches: int = 40) -> None:
        check_arguments(LargestFisherNext, locals())
        if batches < 1:
            raise ConfigurationError(
                f"LargestFisherNext(batches={batches!r}): expected a whole number of optimizer steps, 1 or more."
            )
        self.batches = batches

    def choose(  # noqa: D102
        self, layers: Sequence[str], turn: int, statistics: Statistics = NOTHING_MEASURED
    ) -> Sequence[str]:
        if turn == 0:
            return [layers[-1]]
        trained = set(statistics.trained)
        frozen = [name for name in layers if name not in trained]
        # Of equal ones, the highest layer: that is gradual unfreezing.
        largest = max(reversed(frozen), key=lambda name: statistics.latest.get(name, 0.0), default=None)
        return [name for name in layers if name in trained or name == largest]

    def measured_layers(self, layers: Sequence[str], chosen: Sequence[str]) -> Sequence[str]:
        """The layers that are still frozen."""
        frozen = [name for name in layers if name not in chosen]
        return frozen if len(frozen) > 1 else []  # the last one is next, whatever its information

    def measured_steps(self, interval: int) -> int:  # noqa: D102
        return self.batches

    def preview(self, layers: Sequence[str]) -> list[Sequence[str]]:
        """The order from the top down, which stands for the one that will be measured."""
        return [list(layers[-count:]) for count in range(1, len(layers) + 1)]

    def turns_to_reach_all(self, layers: Sequence[str]) -> int | None:  # noqa: D102
        return len(layers)


class FisherUnfreezing(DynamicFreezing):
    """Unfreezes the layer with the largest trace of the Fisher information next, every few steps (FUN).

    FUN (Liu et al., "FUN with Fisher: Improving Generalization of Adapter-Based Cross-lingual Transfer with Scheduled
    Unfreezing", NAACL 2024, arXiv:2301.05487) begins with the top layer and the head. Every ``interval`` steps it
    unfreezes one more layer, the one with the largest tr Fisher. Gradual unfreezing is a fixed order of that kind.

    The published code measures on extra passes over a copy of the model, with the labels that the model predicts. Here
    the last ``batches`` optimizer steps of each turn are measured, with the true labels: their backward runs through
    all blocks, and the gradients of frozen layers are dropped before the optimizer steps.

    Args:
        interval: How many optimizer steps pass between two layers; 50 for small data sets and 800 or 1000 for large
            ones in the published code.
        batches: How many steps at the end of each turn are measured, from 1 to ``interval``; 40 in the published code.
            Fewer are cheaper.
        layers: Selector of the layers to unfreeze; blocks by default.
        always: Selector of what trains from the start.
        groups: See :class:`PhasedFineTuning`.
        frozen_eval: See :class:`PhasedFineTuning`.
        verbose: See :class:`DynamicFreezing`.
        save_frozen: See :class:`PhasedFineTuning`.

    Raises:
        ConfigurationError: If a number is out of range.
    """

    def __init__(
        self,
        interval: int = 50,
        batches: int = 40,
        layers: str = ":",
        always: str | None = "head",
        groups: Groups | None = None,
        frozen_eval: bool = True,
        verbose: bool = True,
        save_frozen: bool = True,
    ) -> None:
        check_arguments(FisherUnfreezing, locals())
        if not 1 <= batches <= interval:
            raise ConfigurationError(
                f"FisherUnfreezing(batches={batches!r}): expected a whole number of optimizer steps from 1 to "
                f"interval={interval!r}."
            )
        self._begin(
            LargestFisherNext(batches), interval, layers, always, True, groups, frozen_eval, verbose, save_frozen
        )
