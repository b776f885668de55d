"""The phases of a schedule, resolved for one module: what trains in each phase, and what is frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch.nn import Module, Parameter

from lightning_freeze.layers import LayerStack
from lightning_freeze.schedule.phases import Phase


@dataclass(frozen=True)
class ResolvedPhases:
    """Phases, with the parameters and modules that each of them selects.

    Attributes:
        plan: The phases.
        trains: For each phase the parameters that train, in the order of the layers.
        factors: For each phase the factors on their learning rates, without factors of 1.
        freezes: For each phase the parameters that are held frozen, and the modules that are put in eval mode.
    """

    plan: list[Phase]
    trains: list[dict[Parameter, None]] = field(default_factory=list)
    factors: list[dict[Parameter, float]] = field(default_factory=list)
    freezes: list[tuple[Sequence[Parameter], Sequence[Module]]] = field(default_factory=list)

    @classmethod
    def on(cls, stack: LayerStack, plan: Sequence[Phase], frozen_eval: bool) -> ResolvedPhases:
        """Resolve the selectors of phases.

        Args:
            stack: The layers.
            plan: The phases.
            frozen_eval: Whether frozen modules are put in eval mode.

        Raises:
            ConfigurationError: If a selector matches nothing.
        """
        everything = [p for layer in stack if not layer.is_bystander for p in layer.parameters()]
        found = cls(list(plan))
        for phase in plan:
            trains = dict.fromkeys(stack.select(phase.train).parameters)
            frozen = [p for p in everything if p not in trains]
            found.trains.append(trains)
            found.factors.append(_factors(stack, phase, trains))
            found.freezes.append((frozen, stack.modules_within(frozen) if frozen_eval else ()))
        return found

    def add(self, stack: LayerStack, phase: Phase, frozen_eval: bool) -> int:
        """Add a phase, unless there is one that trains the same; returns its number.

        Args:
            stack: See :meth:`on`.
            phase: The phase.
            frozen_eval: See :meth:`on`.
        """
        for number, known in enumerate(self.plan):
            if known.train == phase.train:
                return number
        added = ResolvedPhases.on(stack, [phase], frozen_eval)
        self.plan.extend(added.plan)
        self.trains.extend(added.trains)
        self.factors.extend(added.factors)
        self.freezes.extend(added.freezes)
        return len(self.plan) - 1

    def ever_trains(self) -> dict[Parameter, None]:
        """The parameters that train in any phase."""
        return {parameter: None for trains in self.trains for parameter in trains}

    def fresh(self, phase: int, before: int) -> set[Parameter]:
        """The parameters that train in a phase, but not in another one.

        Args:
            phase: Index of the phase.
            before: Index of the other one; -1 if there is none, so that all of them count.
        """
        return self.trains[phase].keys() - (self.trains[before].keys() if before >= 0 else set())

    def without_idle(self, can_train: Callable[[Parameter], bool]) -> list[Phase]:
        """The plan without phases that train the same parameters at the same rates as the phase before.

        Args:
            can_train: Whether a parameter trains if the schedule allows it; another callback may hold it frozen.
        """
        able = [
            {p: factors.get(p, 1.0) for p in trains if can_train(p)}
            for trains, factors in zip(self.trains, self.factors, strict=True)
        ]
        keep = [phase for i, phase in enumerate(self.plan) if i == 0 or able[i] != able[i - 1]]
        return self.plan if len(keep) == len(self.plan) else [*keep[:-1], replace(keep[-1], until=None)]


def _factors(stack: LayerStack, phase: Phase, trains: Iterable[Parameter]) -> dict[Parameter, float]:
    factors = dict.fromkeys(trains, float(phase.lr))
    for selector, factor in (phase.factors or {}).items():
        chosen = stack.select(selector).parameters
        factors.update({parameter: float(phase.lr * factor) for parameter in chosen if parameter in factors})
    return {parameter: factor for parameter, factor in factors.items() if factor != 1}
