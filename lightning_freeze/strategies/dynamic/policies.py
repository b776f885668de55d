"""Policies of dynamic freezing: pure functions of the layers, the turn and what was measured to what trains in it."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from lightning_freeze.arguments import check_arguments
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.strategies.dynamic.statistics import NOTHING_MEASURED, Statistics

_CYCLES = 2  # how many times the number of layers, in turns, are looked at before the run


class Policy(ABC):
    """Chooses which layers train in each turn of a run; subclasses must not keep any state.

    The choice depends on the policy's own settings, the layers and the number of the turn alone. So every rank makes
    the same one without communication, and a resumed run makes those of the straight run.
    """

    @abstractmethod
    def choose(self, layers: Sequence[str], turn: int) -> Sequence[str]:
        """The layers that train in a turn.

        Args:
            layers: Names of the layers to choose from, in the order of the data flow.
            turn: Number of the turn, 0 for the first.
        """

    def preview(self, layers: Sequence[str]) -> list[Sequence[str]]:
        """The choices that are checked and shown before a run, that of the first turn first.

        Args:
            layers: See :meth:`choose`.
        """
        return [self.choose(layers, turn) for turn in range(_CYCLES * len(layers))]

    def turns_to_reach_all(self, layers: Sequence[str]) -> int | None:
        """How many turns it takes until each layer has trained; a shorter run has a warning.

        ``None``, the default, if that is open, as for random draws, or if not all layers are to train.

        Args:
            layers: See :meth:`choose`.
        """
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class MeasuringPolicy(Policy):
    """Chooses from what is measured in the course of each turn; subclasses must not keep any state.

    The policy says what is measured, of which layers, and on how many steps. All else is done for it: the values are
    those of all ranks, and of all shards. They are kept in checkpoints, so a resumed run makes the choices of the
    straight run.

    Attributes:
        measures: ``"gradient"``: the L1 norm of the sum of a layer's gradients. ``"fisher"``: the trace of the
            empirical Fisher information, which is the mean of the squared norm of the gradient. ``"update"``: the mean
            relative change of a weight by one optimizer step.
    """

    measures: ClassVar[Literal["gradient", "fisher", "update"]]

    @abstractmethod
    def choose(  # noqa: D102
        self, layers: Sequence[str], turn: int, statistics: Statistics = NOTHING_MEASURED
    ) -> Sequence[str]: ...

    def measured_layers(self, layers: Sequence[str], chosen: Sequence[str]) -> Sequence[str]:
        """The layers that are measured in a turn; those that do not train in it get gradients on the measured steps.

        Args:
            layers: Names of all layers to choose from.
            chosen: Names of those that train in the turn.
        """
        return chosen

    def measured_steps(self, interval: int) -> int:
        """On how many optimizer steps, the last ones of a turn, the layers are measured; on all by default.

        Args:
            interval: How many optimizer steps a turn lasts.
        """
        return interval

    def preview(self, layers: Sequence[str]) -> list[Sequence[str]]:
        """The choice of the first turn; later ones depend on what is measured."""
        return [self.choose(layers, 0, NOTHING_MEASURED)]


class RandomLayers(Policy):
    """Trains layers that are drawn at random, without replacement within a turn and independently between turns.

    Args:
        count: How many layers train in each turn, 1 or more.
        seed: Seed of the draws.

    Raises:
        ConfigurationError: If ``count`` is not positive, or larger than the number of layers.
    """

    def __init__(self, count: int = 2, seed: int = 0) -> None:
        check_arguments(RandomLayers, locals())
        if count < 1:
            raise ConfigurationError(f"RandomLayers(count={count!r}): expected a whole number of layers, 1 or more.")
        self.count = count
        self.seed = seed

    def choose(self, layers: Sequence[str], turn: int) -> Sequence[str]:  # noqa: D102
        if self.count > len(layers):
            raise ConfigurationError(
                f"RandomLayers(count={self.count}): the model has {len(layers)} layers to draw from; expected a number "
                f"from 1 to {len(layers)}."
            )
        # A generator for each turn: the draw does not depend on how many came before it in this process.
        drawn = set(random.Random(f"{self.seed}/{turn}").sample(range(len(layers)), self.count))
        return [name for index, name in enumerate(layers) if index in drawn]


class OneLayerAtATime(Policy):
    """Trains each layer alone, one after another.

    Args:
        order: ``"descending"`` from the top down, ``"ascending"`` from the input up, or ``"random"``: each cycle goes
            through all layers in an order of its own.
        seed: Seed of the random orders.
    """

    def __init__(self, order: Literal["descending", "ascending", "random"] = "descending", seed: int = 0) -> None:
        check_arguments(OneLayerAtATime, locals())
        self.order = order
        self.seed = seed

    def choose(self, layers: Sequence[str], turn: int) -> Sequence[str]:  # noqa: D102
        cycle, position = divmod(turn, len(layers))
        order = list(layers)
        if self.order == "descending":
            order.reverse()
        elif self.order == "random":
            random.Random(f"{self.seed}/{cycle}").shuffle(order)
        return [order[position]]

    def turns_to_reach_all(self, layers: Sequence[str]) -> int | None:  # noqa: D102
        return len(layers)
