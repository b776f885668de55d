"""The learning rate of newly unfrozen layers, which rises linearly to its full value."""

from __future__ import annotations

from collections.abc import Hashable

from torch.nn import Parameter

from lightning_freeze.rates.optimizer_steps import index_of_optimizer
from lightning_freeze.schedule.phases import unfrozen_in
from lightning_freeze.session.phase_runner import PhaseRunner


class WarmUp:
    """Scales the rate of what a phase, other than the first, has unfrozen.

    Args:
        runner: The schedule, which takes part in a fit.
        steps: Over how many optimizer steps the rate rises; of the optimizer that holds the layer, if there are
            several.
    """

    def __init__(self, runner: PhaseRunner, steps: int) -> None:
        self.owner = runner.owner
        self._runner = runner
        self._session = runner.session
        self._steps = steps

    def rate_key(self, parameter: Parameter) -> Hashable:
        """What decides about the warm-up: the parameter's optimizer, and the phases in which it trains."""
        if not self._steps:
            return ()
        optimizer = index_of_optimizer(self._session.trainer.optimizers, parameter)
        return optimizer, tuple(parameter in trains for trains in self._runner.resolved.trains)

    def rate_factor(self, key: Hashable) -> float:
        """A warm-up scales no rate for good."""
        return 1.0

    def rate_ramp(self, key: Hashable) -> float:
        """The share of the full rate at present, in (0, 1]."""
        if not key:
            return 1.0
        optimizer: int
        trains_in: tuple[bool, ...]
        optimizer, trains_in = key  # type: ignore[misc]
        runner, session = self._runner, self._session
        begun = unfrozen_in(trains_in, runner.phase)
        if begun == 0:
            return 1.0
        taken = session.trainer.global_step - runner.progress.starts[begun].step
        if not session.module.automatic_optimization:  # the trainer adds up what it sees of all optimizers
            taken = runner.steps.since(optimizer, begun)
        return min(1.0, (taken + 1) / self._steps)
