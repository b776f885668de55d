"""The learning rates of all layers of a run, under whatever optimizers and schedulers the user's module configures."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import prod
from typing import Any, Protocol

from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_freeze.errors import ConfigurationError
from lightning_freeze.optimizers.driven_optimizers import driven_by, held_by
from lightning_freeze.optimizers.optimizer_checks import check_optimizer
from lightning_freeze.optimizers.step_hooks import runs_hooks
from lightning_freeze.optimizers.trial_step import moves_without_gradient
from lightning_freeze.rates.step_groups import StepGroups

State = list[list[dict[str, Any]]]


class RateSource(Protocol):
    """Something that scales learning rates."""

    @property
    def owner(self) -> object:
        """The callback that it belongs to."""

    def rate_key(self, parameter: Parameter) -> Hashable:
        """What decides about a parameter's factor, the same for the whole run; ``()`` if it is always 1."""

    def rate_factor(self, key: Hashable) -> float:
        """The factor of a key now."""


class OptimizerRates:
    """Keeps the learning rate of each parameter, within every optimizer step, at the user's rate times its factors.

    Attributes:
        sources: What scales rates.
        freezes: Whether any parameter is frozen during the run. If so, optimizers that move parameters without a
            gradient do not see the frozen ones.
    """

    def __init__(self) -> None:
        self.sources: list[RateSource] = []
        self.freezes = False
        self._attached: dict[Optimizer, tuple[int, StepGroups | None]] = {}
        self._saved: State = []

    def attach(self, optimizers: Sequence[Optimizer]) -> None:
        """Scale the rates of these optimizers from now on, and stop scaling those of others.

        This is cheap where nothing has changed, so it can be called before every batch: optimizers may be rebuilt or
        get further parameters during a run. An optimizer none of whose rates is ever scaled is not touched.

        Args:
            optimizers: The optimizers of the run, in their order.

        Raises:
            ConfigurationError: If the rates of an optimizer should be scaled and cannot be.
        """
        self._remove(o for o in list(self._attached) if not any(o is other for other in optimizers))
        for index, optimizer in enumerate(optimizers):
            size = sum(len(group["params"]) for group in optimizer.param_groups)
            known, groups = self._attached.get(optimizer, (None, None))
            if groups is None and known != size:
                state = self._saved[index] if index < len(self._saved) else []
                self._attached[optimizer] = size, self._groups(optimizer, state)
        if optimizers:
            self._attached = {optimizer: self._attached[optimizer] for optimizer in optimizers}
            self._saved = []

    def move_innermost(self) -> None:
        """Move the hooks of all optimizers next to the step again, inside those that others have registered since."""
        for _, groups in self._attached.values():
            if groups is not None:
                groups.move_innermost()

    def detach(self) -> None:
        """Restore all optimizers; :meth:`state_dict` still returns the last state."""
        self._saved = self.state_dict() or []
        self._remove(list(self._attached))

    def restore(self) -> None:
        """Put the user's groups back after an optimizer step that raised."""
        for _, groups in self._attached.values():
            if groups is not None:
                groups.restore()

    def rates_of(self, optimizer: Optimizer) -> dict[Parameter, float]:
        """The learning rate of each parameter of an optimizer now; without those that have none."""
        _, groups = self._attached.get(optimizer, (None, None))
        if groups is not None:
            return groups.rates()
        return {
            parameter: float(group["lr"])
            for group in optimizer.param_groups
            if group.get("lr") is not None
            for parameter in group["params"]
        }

    def state_dict(self) -> State | None:
        """What optimizers keep in the groups that they see; ``None`` if they keep nothing there."""
        states = [groups.state_dict() if groups is not None else [] for _, groups in self._attached.values()]
        states = states or self._saved
        return states if any(states) else None

    def load_state_dict(self, state: State | None) -> None:
        """Restore :meth:`state_dict`, at once or as soon as the optimizers are attached."""
        optimizers = list(self._attached)
        self.detach()
        # Older checkpoints have the user's groups in this place.
        self._saved = [[each for each in states if "part_of" in each] for states in state or []]
        if optimizers:
            self.attach(optimizers)

    def _remove(self, optimizers: Iterable[Optimizer]) -> None:
        for optimizer in optimizers:
            _, groups = self._attached.pop(optimizer)
            if groups is not None:
                groups.remove()

    def _groups(self, optimizer: Optimizer, state: Sequence[Mapping[str, Any]]) -> StepGroups | None:
        members = [optimizer, *driven_by(optimizer)]
        scales = any(self._key(parameter) != () for member in members for parameter in held_by(member))
        if scales:
            self._check(optimizer)
        # A wrapper leaves it to the optimizers that it drives to move the parameters.
        leaves_out = [
            m for m in members if self.freezes and not driven_by(m) and runs_hooks(m) and moves_without_gradient(m)
        ]
        if not scales and not leaves_out:
            return None
        return StepGroups(optimizer, self._key, self._factor, leaves_out, state)

    def _check(self, optimizer: Optimizer) -> None:
        try:
            check_optimizer(optimizer, self._key, self._factor)
        except ConfigurationError as error:
            scaling = [s for s in self.sources if any(s.rate_key(parameter) != () for parameter in held_by(optimizer))]
            names = dict.fromkeys(type(source.owner).__name__ for source in scaling)
            raise ConfigurationError(f"{' and '.join(names)}: {error}") from error.__cause__

    def _key(self, parameter: Parameter) -> Hashable:
        keys = tuple(source.rate_key(parameter) for source in self.sources)
        return keys if any(key != () for key in keys) else ()

    def _factor(self, key: Hashable) -> float:
        parts = key if isinstance(key, tuple) else ()
        return prod(source.rate_factor(part) for source, part in zip(self.sources, parts, strict=False) if part != ())
