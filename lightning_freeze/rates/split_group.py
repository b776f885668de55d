"""One of the user's parameter groups, in the parts that an optimizer sees in its place while it steps."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from lightning_freeze.optimizers.group_values import PER_PARAMETER, copy_value, is_equal, is_unchanged, mark, scaled


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
        """The names of values that the optimizer has written since the last call."""
        values = {name: value for name, value in self.group.items() if name not in PER_PARAMETER}
        found = {n for n, v in values.items() if n not in self._marks or not is_unchanged(v, self._marks[n])}
        self._marks.update({name: mark(values[name]) for name in found})
        return found


class SplitGroup:
    """A parameter group of the user, split by the factor of its parameters' learning rates.

    Each part has the values of the user's group, with the learning rate times the part's factor. What the optimizer
    itself writes into a part (Prodigy's ``d``, schedule-free's ``weight_sum``) stays with that part from step to step,
    until another value is written into the user's group. That value then holds for all parts.

    The user's group shows the written values of the part whose factor is nearest to 1. A learning rate that the
    optimizer has written is divided by the part's factor.

    Args:
        group: The user's group.
        key_of: The key of a parameter; parameters with equal keys share a part.
        state: What :meth:`state_dict` of an earlier split returned, which had these parameters at the same positions.
            The state of a group of another size is ignored.
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
        if state is not None and len(state["part_of"]) == len(self._parameters):
            self._load(state)

    @property
    def is_scaled(self) -> bool:
        """Whether any parameter has a key other than ``()``."""
        return any(part.key != () for part in self.parts)

    def enter(
        self, factor_of: Callable[[Hashable], float], sees: Callable[[Parameter], bool] | None
    ) -> list[dict[str, Any]]:
        """The groups for the optimizer to see now.

        Args:
            factor_of: The factor of a key.
            sees: Whether the optimizer sees a parameter; by default it sees all. Parts without any are left out.
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
        self._seen.update({name: mark(self.user[name]) for name in changed})
        for name in removed:
            del self._seen[name]
        return [part.group for part in self.parts if part.group["params"]]

    def leave(self) -> None:
        """Copy what the optimizer has written into the parts to the user's group."""
        written = {name for part in self.parts for name in part.written()}
        if not written:
            return
        ranked = sorted(self.parts, key=lambda part: abs(part.factor - 1))
        for name in written:
            shown = next(part for part in ranked if name in part.group)
            value = shown.group[name]
            is_scaled = name == "lr" and shown.factor
            self.user[name] = scaled(value, 1 / shown.factor) if is_scaled else copy_value(value)
            self._seen[name] = mark(self.user[name])

    def rates(self, factor_of: Callable[[Hashable], float]) -> dict[Parameter, float]:
        """The learning rate of each parameter now."""
        is_as_seen = self._is_as_seen("lr")
        rates: dict[Parameter, float] = {}
        for part in self.parts:
            factor = factor_of(part.key)
            keeps = is_as_seen and factor == part.factor
            rate = float(part.group["lr"]) if keeps else float(self.user["lr"]) * factor
            rates.update((self._parameters[position], rate) for position in part.positions)
        return rates

    def state_dict(self) -> dict[str, Any] | None:
        """The values in which parts differ, of each part; ``None`` if there are none.

        They are of the kinds that the optimizer's own state holds for its groups.
        """
        names = [
            name for name in self._seen if self._is_as_seen(name) and not all(map(self._follows(name), self.parts))
        ]
        if not names:
            return None
        part_of = {position: index for index, part in enumerate(self.parts) for position in part.positions}
        return {
            "part_of": [part_of[position] for position in range(len(self._parameters))],
            "factors": [part.factor for part in self.parts],
            "values": {
                name: {i: copy_value(part.group[name]) for i, part in enumerate(self.parts) if name in part.group}
                for name in names
            },
            "shown": {name: copy_value(self.user[name]) for name in names},
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        for part in self.parts:
            index = state["part_of"][part.positions[0]]
            part.factor = state["factors"][index]
            for name, values in state["values"].items():
                if index in values:
                    here, value = self.user.get(name), values[index]
                    part.put(name, copy_value(value.to(here.device) if isinstance(here, Tensor) else value))
        self._seen = {name: mark(value) for name, value in state["shown"].items()}

    def _is_as_seen(self, name: str) -> bool:
        return name in self._seen and name in self.user and is_unchanged(self.user[name], self._seen[name])

    def _follows(self, name: str) -> Callable[[_Part], bool]:
        def follows(part: _Part) -> bool:
            value = scaled(self.user[name], part.factor) if name == "lr" else self.user[name]
            return name in part.group and is_equal(part.group[name], value)

        return follows

    def _select(self, part: _Part, sees: Callable[[Parameter], bool] | None) -> dict[str, list[Any]]:
        positions = [i for i in part.positions if sees is None or sees(self._parameters[i])]
        return {name: [self.user[name][i] for i in positions] for name in PER_PARAMETER if name in self.user}
