"""The measurement of one turn: when it is made, and what gets gradients for it without being trained."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from torch.nn import Module, Parameter

from lightning_freeze.distributed import mean_of_each, resynchronise
from lightning_freeze.layers import Layer, LayerStack
from lightning_freeze.layers.discovery.module_tree import clean_name
from lightning_freeze.session.session import Session
from lightning_freeze.strategies.dynamic.measuring.gradient_measurements import AccumulatedGradient, FisherTrace
from lightning_freeze.strategies.dynamic.measuring.measurement import Measurement
from lightning_freeze.strategies.dynamic.measuring.update_size import UpdateSize
from lightning_freeze.strategies.dynamic.policies import MeasuringPolicy, Policy

_KINDS: dict[str, type[Measurement]] = {"gradient": AccumulatedGradient, "fisher": FisherTrace, "update": UpdateSize}

Frozen = tuple[Sequence[Parameter], Sequence[Module]]
"""What a phase holds frozen, and what it puts in eval mode."""


class TurnMeasurement:
    """Measures what a policy asks for in one turn; does nothing for a policy that asks for nothing.

    Layers that do not train in the turn require grad from the forward pass of a measured step until their gradients
    are there. They are frozen again, without a gradient, before the optimizer steps. Their modules stay in eval mode.

    Args:
        policy: The policy, if there is one.
        stack: The layers of the module.
        layers: Names of the layers that the policy chooses from.
        chosen: Names of those that train in the turn.
    """

    def __init__(self, policy: Policy | None, stack: LayerStack, layers: Sequence[str], chosen: Sequence[str]) -> None:
        self._policy = policy if isinstance(policy, MeasuringPolicy) else None
        self._measurement: Measurement | None = None
        self._not_trained: set[Parameter] = set()
        self._is_measured = False  # the running step
        self._is_registered = False  # what is measured without being trained, by the strategy
        if self._policy is not None:
            names = self._policy.measured_layers(layers, chosen)
            measured = {layer: _named(stack[layer]) for layer in names}
            rest = [named for layer in stack if layer.name not in measured for named in _named(layer)]
            self._measurement = _KINDS[self._policy.measures](measured, rest)
            self._not_trained = {p for layer in names if layer not in chosen for p in stack[layer].parameters()}

    def begin_batch(self, session: Session, owner: Hashable, frozen: Frozen, step: int, interval: int) -> None:
        """Decide whether the step is measured, and let gradients reach what is measured.

        Args:
            session: The running fit.
            owner: What holds layers frozen.
            frozen: What it holds in the running phase.
            step: Number of the optimizer step in the turn.
            interval: How many steps the turn lasts.
        """
        if self._policy is None:
            return
        self._is_measured = interval - step <= self._policy.measured_steps(interval)
        if self._is_measured and self._not_trained:
            parameters, modules = frozen
            session.holds.hold(owner, [p for p in parameters if p not in self._not_trained], modules)
            if not self._is_registered:
                self._resynchronise(session)
                self._is_registered = True

    def before_step(self, session: Session, owner: Hashable, frozen: Frozen) -> None:
        """Measure, and freeze again what does not train."""
        if self._measurement is not None and self._is_measured:
            self._measurement.before_step()
            if self._not_trained:
                session.holds.hold(owner, *frozen)

    def end_batch(self) -> None:
        """Measure what shows only after the optimizer step."""
        if self._measurement is not None and self._is_measured:
            self._measurement.end_batch()

    def finish(self, session: Session) -> dict[str, float]:
        """The values, the same on all ranks; the strategy registers again only what trains."""
        if self._is_registered:
            self._resynchronise(session)
            self._is_registered = False
        return self._values(session.trainer)

    def state_dict(self) -> Any:
        """What has been measured so far in the turn."""
        return self._measurement.state_dict() if self._measurement is not None else None

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """The inverse of :meth:`state_dict`."""
        if self._measurement is not None and state is not None:
            self._measurement.load_state_dict(state)

    def _values(self, trainer: Trainer) -> dict[str, float]:
        return mean_of_each(trainer, self._measurement.values()) if self._measurement is not None else {}

    def _resynchronise(self, session: Session) -> None:
        with session.requires_grad_as_given():
            resynchronise(session.trainer, session.module)


def _named(layer: Layer) -> list[tuple[str, Parameter]]:
    return [(clean_name(name), parameter) for name, parameter in layer.named_parameters()]
