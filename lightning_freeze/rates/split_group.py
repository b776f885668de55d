"""One of the user's parameter groups, in the parts that an optimizer sees in its place while it steps."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from lightning_freeze.rates.group_values import copy_value, is_unchanged, mark, plain, scaled

PER_PARAMETER = ("params", "param_names")


class _Part:
    """The parameters of a group that share a key, in a group of their own that lasts from step to step."""

    def __init__(self, key: Hashable, positions: list[int]) -> None:
        self.key = key
        self.positions = positions
        self.factor = 1.0
        self.group: dict[str, Any] = {}
        self.before: dict[str, Any] = {}  # marks of the group's values as the step began


class SplitGroup:
    """A parameter group of the user, split by the factor of its parameters' learning rates.

    Each part has the values of the user's group, the learning rate times the part's factor. What the optimizer itself
    writes into a part (Prodigy's ``d``, schedule-free's ``weight_sum``) stays with that part from step to step, until
    somebody writes another value into the user's group: then that one holds for all parts.

    The user's group shows the written values of one part: of those that have gradients, the one whose factor is nearest
    to 1; a learning rate that the optimizer itself has written is divided by the part's factor.

    Args:
        group: The user's group.
        key_of: The key of a parameter; parameters with equal keys share a part.
        state: What :meth:`state_dict` of an earlier split returned, which had these parameters at the same positions.
    """

    def __init__(
        self, group: dict[str, Any], key_of: Callable[[Parameter], Hashable], state: Mapping[str, Any] | None = None
    ) -> None:
        self.user = group
        self._parameters = list(group["params"])
        positions: dict[Hashable, list[int]] = {}
        for position, parameter in enumerate(self._parameters):
            positions.setdefault(key_of(parameter), []).append(position)
        self.parts = [_Part(*item) for item in positions.items()]
        self._own: dict[str, Any] = {}  # of each value that the parts have their own of: a mark of what the user sees
        self._seen: dict[str, Any] | None = None  # marks of the user's values that the parts have now
        if state is not None:
            self._load(state)

    @property
    def is_scaled(self) -> bool:
        """Whether any parameter has a key other than ``()``."""
        return any(part.key != () for part in self.parts)

    def holds(self, group: dict[str, Any]) -> bool:
        """Whether another group has exactly these parameters."""
        parameters = group["params"]
        return len(parameters) == len(self._parameters) and all(
            left is right for left, right in zip(parameters, self._parameters, strict=True)
        )

    def enter(
        self, factor_of: Callable[[Hashable], float], sees: Callable[[Parameter], bool] | None
    ) -> list[dict[str, Any]]:
        """The groups for the optimizer to see now.

        Args:
            factor_of: The factor of a key.
            sees: Whether the optimizer shall see a parameter; by default all. Parts without any are left out.
        """
        factors = [factor_of(part.key) for part in self.parts]
        if sees is not None or not self._is_current(factors):
            self._update(factors, sees)
        return [part.group for part in self.parts if part.group["params"]]

    def leave(self) -> None:
        """Take over into the user's group what the optimizer has written into the parts."""
        written = {
            name: None
            for part in self.parts
            for name, value in part.group.items()
            if name not in PER_PARAMETER and not (name in part.before and is_unchanged(value, part.before[name]))
        }
        if not written:
            return
        self._seen = None
        ranked = sorted(self.parts, key=lambda part: (not self._has_gradients(part), abs(part.factor - 1)))
        for name in written:
            shown = next(part for part in ranked if name in part.group)
            value = shown.group[name]
            is_scaled = name == "lr" and shown.factor
            self.user[name] = scaled(value, 1 / shown.factor) if is_scaled else copy_value(value)
            self._own[name] = mark(self.user[name])

    def rates(self, factor_of: Callable[[Hashable], float]) -> dict[Parameter, float]:
        """The learning rate of each parameter now."""
        own = "lr" in self._own and self._is_as_shown("lr")
        rates: dict[Parameter, float] = {}
        for part in self.parts:
            factor = factor_of(part.key)
            keeps = own and factor == part.factor
            rate = float(part.group["lr"]) if keeps else float(self.user["lr"]) * factor
            rates.update((self._parameters[position], rate) for position in part.positions)
        return rates

    def state_dict(self) -> dict[str, Any] | None:
        """The values that the parts have their own of, as plain data; ``None`` if there are none."""
        values: dict[str, dict[int, Any]] = {}
        for name in self._own:
            if self._is_as_shown(name):
                with suppress(ValueError):  # what is no plain data resumes from what the user's group shows
                    values[name] = {i: plain(p.group[name]) for i, p in enumerate(self.parts) if name in p.group}
        if not values:
            return None
        part_of = {position: index for index, part in enumerate(self.parts) for position in part.positions}
        return {
            "part_of": [part_of[position] for position in range(len(self._parameters))],
            "factors": [part.factor for part in self.parts],
            "values": values,
            "shown": {name: plain(self.user[name]) for name in values},
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        part_of = state["part_of"]
        for part in self.parts:
            index = part_of[part.positions[0]] if part.positions[0] < len(part_of) else None
            for name, each in state["values"].items():
                # A parameter that the state does not know begins with what the user's group shows.
                for value in [state["shown"][name]] if index is None else [each[index]] if index in each else []:
                    here = self.user.get(name)
                    part.group[name] = copy_value(value.to(here.device) if isinstance(here, Tensor) else value)
            part.factor = 1.0 if index is None else state["factors"][index]
        self._own = {name: mark(value) for name, value in state["shown"].items()}

    def _is_current(self, factors: list[float]) -> bool:
        if (
            self._seen is None
            or factors != [part.factor for part in self.parts]
            or self._seen.keys() != self.user.keys()
        ):
            return False
        return all(name in PER_PARAMETER or is_unchanged(self.user[name], seen) for name, seen in self._seen.items())

    def _update(self, factors: list[float], sees: Callable[[Parameter], bool] | None) -> None:
        self._own = {name: shown for name, shown in self._own.items() if self._is_as_shown(name)}
        shared = [name for name in self.user if name not in (*PER_PARAMETER, "lr") and name not in self._own]
        for part, factor in zip(self.parts, factors, strict=True):
            rate = part.group.get("lr")
            own = {name: part.group[name] for name in self._own if name in part.group}
            if "lr" in self.user and not ("lr" in own and factor == part.factor):
                own["lr"] = scaled(self.user["lr"], factor, into=rate)
            part.group.clear()  # the same object from step to step: optimizers may hold it across their closure
            part.group.update(self._select(part, sees))
            part.group.update({name: copy_value(self.user[name]) for name in shared})
            part.group.update(own)
            part.factor = factor
            part.before = {name: mark(value) for name, value in part.group.items() if name not in PER_PARAMETER}
        self._seen = {name: None if name in PER_PARAMETER else mark(value) for name, value in self.user.items()}

    def _is_as_shown(self, name: str) -> bool:
        return name in self.user and is_unchanged(self.user[name], self._own[name])

    def _select(self, part: _Part, sees: Callable[[Parameter], bool] | None) -> dict[str, list[Any]]:
        positions = [i for i in part.positions if sees is None or sees(self._parameters[i])]
        return {name: [self.user[name][i] for i in positions] for name in PER_PARAMETER if name in self.user}

    def _has_gradients(self, part: _Part) -> bool:
        return any(self._parameters[position].grad is not None for position in part.positions)
