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

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.positions: list[int] = []
        self.factor = 1.0
        self.group: dict[str, Any] = {}  # one object for all steps: optimizers may hold it across their closure
        self._marks: dict[str, Any] = {}

    def put(self, name: str, value: Any) -> None:
        self.group[name] = value
        self._marks[name] = mark(value)

    def drop(self, name: str) -> None:
        self.group.pop(name, None)
        self._marks.pop(name, None)

    def written(self) -> set[str]:
        """The names of values that the optimizer has written since the last call; each of them is told once."""
        values = {name: value for name, value in self.group.items() if name not in PER_PARAMETER}
        found = {n for n, v in values.items() if n not in self._marks or not is_unchanged(v, self._marks[n])}
        self._marks.update({name: mark(values[name]) for name in found})
        return found


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
        parts: dict[Hashable, _Part] = {}
        for position, parameter in enumerate(self._parameters):
            key = key_of(parameter)
            parts.setdefault(key, _Part(key)).positions.append(position)
        self.parts = list(parts.values())
        self._seen: dict[str, Any] = {}  # marks of the user's values that the parts are up to date with
        self._own: set[str] = set()  # names of the values that the optimizer has written
        if state is not None:
            self._load(state)

    @property
    def is_scaled(self) -> bool:
        """Whether any parameter has a key other than ``()``."""
        return any(part.key != () for part in self.parts)

    def holds(self, group: dict[str, Any]) -> bool:
        """Whether another group has exactly these parameters."""
        return [*map(id, group["params"])] == [*map(id, self._parameters)]

    def enter(
        self, factor_of: Callable[[Hashable], float], sees: Callable[[Parameter], bool] | None
    ) -> list[dict[str, Any]]:
        """The groups for the optimizer to see now.

        Args:
            factor_of: The factor of a key.
            sees: Whether the optimizer shall see a parameter; by default all. Parts without any are left out.
        """
        changed = [name for name in self.user if name not in PER_PARAMETER and not self._is_as_seen(name)]
        removed = self._seen.keys() - self.user.keys()
        for part in self.parts:
            factor = factor_of(part.key)
            if sees is not None or "params" not in part.group:
                part.group.update(self._select(part, sees))
            for name in changed:
                if name != "lr":
                    part.put(name, copy_value(self.user[name]))
            if "lr" in changed or ("lr" in self.user and factor != part.factor):
                part.put("lr", scaled(self.user["lr"], factor, into=part.group.get("lr")))
            for name in removed:
                part.drop(name)
            part.factor = factor
        self._own -= {*changed, *removed}
        self._seen = {name: seen for name, seen in self._seen.items() if name not in removed}
        self._seen.update({name: mark(self.user[name]) for name in changed})
        return [part.group for part in self.parts if part.group["params"]]

    def leave(self) -> None:
        """Take over into the user's group what the optimizer has written into the parts."""
        written = {name for part in self.parts for name in part.written()}
        if not written:
            return
        ranked = sorted(self.parts, key=lambda part: (not self._has_gradients(part), abs(part.factor - 1)))
        for name in written:
            shown = next(part for part in ranked if name in part.group)
            value = shown.group[name]
            is_scaled = name == "lr" and shown.factor
            self.user[name] = scaled(value, 1 / shown.factor) if is_scaled else copy_value(value)
            self._seen[name] = mark(self.user[name])
        self._own |= written

    def rates(self, factor_of: Callable[[Hashable], float]) -> dict[Parameter, float]:
        """The learning rate of each parameter now."""
        own = "lr" in self._own and self._is_as_seen("lr")
        rates: dict[Parameter, float] = {}
        for part in self.parts:
            factor = factor_of(part.key)
            keeps = own and factor == part.factor
            rate = float(part.group["lr"]) if keeps else float(self.user["lr"]) * factor
            rates.update((self._parameters[position], rate) for position in part.positions)
        return rates

    def state_dict(self) -> dict[str, Any] | None:
        """The values that the optimizer has written, of each part, as plain data; ``None`` if there are none."""
        values: dict[str, dict[int, Any]] = {}
        for name in self._own:
            if self._is_as_seen(name):
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
                    part.put(name, copy_value(value.to(here.device) if isinstance(here, Tensor) else value))
            part.factor = 1.0 if index is None else state["factors"][index]
        self._seen = {name: mark(value) for name, value in state["shown"].items()}
        self._own = set(self._seen)

    def _is_as_seen(self, name: str) -> bool:
        return name in self._seen and name in self.user and is_unchanged(self.user[name], self._seen[name])

    def _select(self, part: _Part, sees: Callable[[Parameter], bool] | None) -> dict[str, list[Any]]:
        positions = [i for i in part.positions if sees is None or sees(self._parameters[i])]
        return {name: [self.user[name][i] for i in positions] for name in PER_PARAMETER if name in self.user}

    def _has_gradients(self, part: _Part) -> bool:
        return any(self._parameters[position].grad is not None for position in part.positions)
