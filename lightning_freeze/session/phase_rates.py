"""The learning rates of a schedule: factors of the running phase, and the warm-up of newly unfrozen layers."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import pairwise
from typing import NamedTuple, cast

from torch.nn import Parameter

from lightning_freeze.schedule.phases import unfrozen_in
from lightning_freeze.session.optimizer_steps import index_of_optimizer
from lightning_freeze.session.phase_runner import PhaseRunner


class _Key(NamedTuple):
    optimizer: int  # index of the one that holds the parameter
    trains: tuple[bool, ...]  # for each phase
    factors: tuple[float, ...]  # for each phase


class PhaseRates:
    """Scales the rates of what a schedule trains.

    Args:
        runner: The schedule, which takes part in a fit.
        warmup_steps: Over how many optimizer steps the rate of newly unfrozen layers rises to its full value; of the
            optimizer that holds the layer, if there are several.
    """

    def __init__(self, runner: PhaseRunner, warmup_steps: int) -> None:
        self.owner = runner.owner
        self._runner = runner
        self._session = runner.session
        self._warmup_steps = warmup_steps

    def rate_key(self, parameter: Parameter) -> Hashable:
        """What decides about a parameter's factor; ``()`` if it is 1 in every phase and never warms up."""
        resolved = self._runner.resolved
        trains = tuple(parameter in trained for trained in resolved.trains)
        factors = tuple(factors.get(parameter, 1.0) for factors in resolved.factors)
        is_unfrozen = any(now and not before for before, now in pairwise(trains))
        if all(factor == 1 for factor in factors) and not (self._warmup_steps and is_unfrozen):
            return ()
        is_automatic = self._session.module.automatic_optimization  # with one optimizer
        optimizer = 0 if is_automatic else index_of_optimizer(self._session.trainer.optimizers, parameter)
        return _Key(optimizer, trains, factors)

    def rate_factor(self, key: Hashable) -> float:
        """The factor of the running phase, times the share that the warm-up has reached."""
        key = cast("_Key", key)
        return key.factors[self._runner.phase] * self._warm_up(key)

    def _warm_up(self, key: _Key) -> float:
        runner, session = self._runner, self._session
        begun = unfrozen_in(key.trains, runner.phase)
        if begun == 0 or not self._warmup_steps:
            return 1.0
        taken = session.trainer.global_step - runner.progress.starts[begun].step
        if not session.module.automatic_optimization:  # the trainer adds up what it sees of all optimizers
            taken = runner.steps.since(key.optimizer, begun)
        return min(1.0, (taken + 1) / self._warmup_steps)
