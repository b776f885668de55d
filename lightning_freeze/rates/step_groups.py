"""The parameter groups that an optimizer sees while it steps: the user's, split by the factor of each rate.

Outside of ``optimizer.step()``, and within the closure that it calls, the groups are the user's own objects in the
user's own list. Schedulers, finders, monitors, checkpoints, ``add_param_group`` and access by index therefore do not
depend on the factors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple

from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_freeze.optimizers.driven_optimizers import driven_by
from lightning_freeze.optimizers.step_hooks import StepHooks, runs_hooks
from lightning_freeze.rates.split_group import SplitGroup

Group = dict[str, Any]


class _Replaced(NamedTuple):
    splits: list[SplitGroup]
    lists: list[tuple[list[Group], list[Group]]]  # each replaced list, and what the user had in it


class StepGroups:
    """Replaces the groups of an optimizer, and of the optimizers that it drives, during each step.

    Args:
        optimizer: The optimizer.
        key_of: The key of a parameter. Parameters of one group with equal keys share a group within the step.
        factor_of: The factor of a key now.
        leaves_out: The optimizers that do not see, within a step, parameters that are frozen and have no gradient.
        state: What :meth:`state_dict` returned, to go on from.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        key_of: Callable[[Parameter], Hashable],
        factor_of: Callable[[Hashable], float],
        leaves_out: Sequence[Optimizer] = (),
        state: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._members = [optimizer, *driven_by(optimizer)]
        self._driven = {member: driven_by(member) for member in self._members}
        self._key_of = key_of
        self._factor_of = factor_of
        self._leaves_out = leaves_out
        self._splits: dict[tuple[int, ...], SplitGroup] = {}  # by the identity of the parameters
        self._saved: dict[tuple[int, int], Mapping[str, Any]] = {(s["optimizer"], s["group"]): s for s in state}
        self._replaced: dict[Optimizer, _Replaced] = {}
        self._hooks = [StepHooks(m, self._before, self._after) for m in self._members if runs_hooks(m)]

    def move_innermost(self) -> None:
        """Move the hooks next to the step again, inside those that have been registered since."""
        for hooks in self._hooks:
            hooks.move_innermost()

    def restore(self) -> None:
        """Put the user's groups back after a step that raised."""
        for optimizer in list(self._replaced):
            self._restore(optimizer)

    def remove(self) -> None:
        """Put the user's groups back and remove the hooks."""
        self.restore()
        for hooks in self._hooks:
            hooks.remove()

    def rates(self) -> dict[Parameter, float]:
        """The learning rate of each parameter now."""
        rates: dict[Parameter, float] = {}
        for optimizer in self._members:
            for group in self._own_groups(optimizer):
                if group.get("lr") is not None:
                    rates.update(self._split(group).rates(self._factor_of))
        return rates

    def state_dict(self) -> list[dict[str, Any]]:
        """The values that the optimizers keep in the groups that they see; often none."""
        states = dict(self._saved)
        for place, group in self._places():
            split = self._splits.get(_identity(group))
            state = split.state_dict() if split is not None else None
            if state is not None:
                states[place] = state
        return [{**state, "optimizer": member, "group": group} for (member, group), state in states.items()]

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._restore(optimizer)  # what a step that raised has left
        self._replace(optimizer)
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._with_users_groups(optimizer, kwargs["closure"])}
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._with_users_groups(optimizer, args[1]), *args[2:]), kwargs
        return None

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        self._restore(optimizer)

    def _with_users_groups(self, optimizer: Optimizer, closure: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(closure)
        def with_users_groups(*args: Any, **kwargs: Any) -> Any:
            self._restore(optimizer)
            output = closure(*args, **kwargs)
            self._replace(optimizer)  # with what the user's hooks have written meanwhile
            return output

        return with_users_groups

    def _replace(self, optimizer: Optimizer) -> None:
        sees = _has_gradient_or_trains if optimizer in self._leaves_out else None
        replaced_already = {id(part.group) for each in self._replaced.values() for s in each.splits for part in s.parts}
        parts: dict[int, list[Group]] = {}
        splits = []
        for group in self._own_groups(optimizer):
            if id(group) in replaced_already:
                continue
            split = self._split(group)
            if split.is_scaled or sees is not None:
                parts[id(group)] = split.enter(self._factor_of, sees)
                splits.append(split)
        lists = {id(member.param_groups): member.param_groups for member in self._members}.values()
        replaced = [(groups, list(groups)) for groups in lists if any(id(group) in parts for group in groups)]
        for groups, users in replaced:
            groups[:] = [part for group in users for part in parts.get(id(group), [group])]
        if splits:
            self._replaced[optimizer] = _Replaced(splits, replaced)

    def _restore(self, optimizer: Optimizer) -> None:
        replaced = self._replaced.pop(optimizer, None)
        if replaced is None:
            return
        known = {id(part.group) for split in replaced.splits for part in split.parts}
        for groups, users in replaced.lists:
            known.update(map(id, users))
            groups[:] = [*users, *(group for group in groups if id(group) not in known)]
        for split in replaced.splits:
            split.leave()

    def _own_groups(self, optimizer: Optimizer) -> list[Group]:
        # Some wrappers copy the values of their groups to those of the optimizer that they drive, which has its own
        # hooks; in the wrapper's step such groups stay as they are.
        ids = {id(group) for group in optimizer.param_groups}
        copies = [g for driven in self._driven[optimizer] for g in driven.param_groups if id(g) not in ids]
        elsewhere = {id(parameter) for group in copies for parameter in group["params"]}
        return [g for g in optimizer.param_groups if elsewhere.isdisjoint(map(id, g["params"]))]

    def _split(self, group: Group) -> SplitGroup:
        identity = _identity(group)
        if identity not in self._splits:
            place = next(place for place, each in self._places() if each is group)
            self._splits[identity] = SplitGroup(group, self._key_of, self._saved.pop(place, None))
        split = self._splits[identity]
        split.user = group  # `load_state_dict` makes new ones
        return split

    def _places(self) -> list[tuple[tuple[int, int], Group]]:
        # Wrappers share groups with the optimizers that they drive.
        places: dict[int, tuple[tuple[int, int], Group]] = {}
        for index, member in enumerate(self._members):
            for position, group in enumerate(member.param_groups):
                places.setdefault(id(group), ((index, position), group))
        return list(places.values())


def _identity(group: Group) -> tuple[int, ...]:
    return tuple(map(id, group["params"]))


def _has_gradient_or_trains(parameter: Parameter) -> bool:
    return parameter.requires_grad or parameter.grad is not None
