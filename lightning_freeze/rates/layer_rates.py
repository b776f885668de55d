"""One learning rate per layer, under whatever optimizer and scheduler the user's module configures.

The optimizer's groups are split per layer once, before Lightning restores any state, and never change again. The
user's own groups live on, without parameters, in a small stand-in optimizer, and the user's scheduler drives those.
Before each optimizer step the rates are copied from there into the real groups, multiplied by each layer's factor.
Schedulers therefore see exactly the groups that they were built for, which makes this right for every scheduler
(adding or duplicating groups under a scheduler is
not: LambdaLR and OneCycleLR crash, ``eta_min`` and absolute thresholds come out wrong).
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_freeze.errors import ConfigurationError
from lightning_freeze.rates.base_rates import BaseRates, redirect
from lightning_freeze.rates.optimizer_layout import Layout, layout, rearrange

RATES = ("lr", "initial_lr", "max_lr", "min_lr")
_OWN = ("params", "param_names", "name")


class RateSource(Protocol):
    """Something that scales learning rates."""

    @property
    def owner(self) -> object:
        """The callback that it belongs to."""

    def rate_key(self, parameter: Parameter) -> Hashable:
        """A key; parameters of one optimizer group with equal keys (and layers) share a group. ``()`` scales none."""

    def rate_factor(self, key: Hashable) -> float:
        """The factor for the whole run, applied to every rate of the group."""

    def rate_ramp(self, key: Hashable) -> float:
        """The factor right now, in [0, 1], applied to the current rate only."""


class _Split(NamedTuple):
    real: Optimizer
    base: BaseRates
    origin: list[int]  # of each real group: the user's group that it came from
    keys: list[tuple[Hashable, ...]]  # of each real group: one key per source
    positions: list[list[int]]  # of each real group: where its parameters stood in the user's groups
    users: Layout  # the user's own layout
    written: list[dict[str, Any]]  # of each real group: what was last written


class LayerRates:
    """Keeps every layer's learning rate at the user's rate times the layer's factor."""

    def __init__(self) -> None:
        self.sources: list[RateSource] = []
        self._splits: list[_Split] = []
        self._pending: list[list[dict[str, Any]]] | None = None

    @property
    def is_split(self) -> bool:
        """Whether the optimizers' groups have been split per layer."""
        return bool(self._splits)

    def split(self, optimizers: Iterable[Optimizer], schedulers: Iterable[Any], names: Mapping[Parameter, str]) -> None:
        """Split the groups of all optimizers per layer, once; later calls do nothing.

        Args:
            optimizers: The optimizers, as ``configure_optimizers`` made them.
            schedulers: Their schedulers, which will drive the stand-ins from now on.
            names: The layer name of each parameter; parameters without one keep a group of their own.
        """
        if self.is_split:
            return
        for optimizer in optimizers:
            groups, origin, keys, positions = self._groups(optimizer, names)
            if _sets_its_own_rate(optimizer):
                _refuse_to_scale(optimizer, keys)
                continue
            base, users = BaseRates(optimizer), layout(optimizer.param_groups)
            optimizer.param_groups[:] = groups
            for scheduler in schedulers:
                redirect(scheduler, optimizer, base)
            self._splits.append(_Split(optimizer, base, origin, keys, positions, users, [{} for _ in groups]))
        if self._pending is not None:
            self._load(self._pending)

    def base_of(self, optimizer: Optimizer) -> BaseRates | None:
        """The stand-in with the user's own groups; ``None`` if the optimizer's groups have not been split."""
        return next((split.base for split in self._splits if split.real is optimizer), None)

    def factors_of(self, optimizer: Optimizer) -> list[float]:
        """The factor of each group of an optimizer, without those that change with time."""
        split = next((split for split in self._splits if split.real is optimizer), None)
        return [self._factors(keys)[0] for keys in split.keys] if split else [1.0] * len(optimizer.param_groups)

    def adopt(self, optimizers: Sequence[Optimizer], states: list[dict[str, Any]]) -> None:
        """Take over the optimizers of a run whose groups were not split, rearranging their states in place.

        Args:
            optimizers: The optimizers of this run.
            states: The ``state_dict`` of each optimizer. Those that are not in the user's own layout stay as they are.
        """
        for index, (optimizer, state) in enumerate(zip(optimizers, states, strict=False)):
            split = next((split for split in self._splits if split.real is optimizer), None)
            if (
                split is None
                or layout(state["param_groups"]) != split.users
                or split.users == layout(split.real.param_groups)
            ):
                continue
            for group, saved in zip(split.base.param_groups, state["param_groups"], strict=True):
                for name, value in saved.items():
                    if name not in _OWN:
                        _assign(group, name, value)
            names = [group["name"] for group in split.real.param_groups]
            states[index] = rearrange(state, split.positions, split.origin, names)

    def write(self, force: bool = False) -> None:
        """Copy the user's current rates, times each layer's factors, into the real groups.

        One value that somebody else has set for all groups alike (a warm-up by hand in ``optimizer_step``) is taken
        for the user's rate, to which the factors apply. A value set for some of them is left alone, unless ``force``.
        """
        for split in self._splits:
            if not force:
                _take_over(split)
            for group, origin, keys, written in zip(
                split.real.param_groups, split.origin, split.keys, split.written, strict=True
            ):
                factor, ramp = self._factors(keys)
                for name, value in split.base.param_groups[origin].items():
                    if name in _OWN:
                        continue
                    if name in RATES and value is not None:
                        value = value * (factor * ramp if name == "lr" else factor)
                    if force or name not in written or _same(group.get(name), written[name]):
                        _assign(group, name, value)
                        written[name] = _copy(value)

    def rates_by_name(self) -> dict[str, list[float]]:
        """The current rates of each real group, by group name."""
        rates: dict[str, list[float]] = {}
        for split in self._splits:
            for group in split.real.param_groups:
                if group.get("lr") is not None:
                    rates.setdefault(group["name"], []).append(float(group["lr"]))
        return rates

    def state_dict(self) -> list[list[dict[str, Any]]] | None:
        """The user's own groups, without parameters, as plain data; ``None`` before the split."""
        if not self.is_split:
            return self._pending
        return [
            [{k: _plain(v) for k, v in group.items() if k not in _OWN} for group in split.base.param_groups]
            for split in self._splits
        ]

    def load_state_dict(self, state: list[list[dict[str, Any]]] | None) -> None:
        """Restore :meth:`state_dict`, at once or as soon as the groups are split."""
        self._pending = state
        if state is not None and self.is_split:
            self._load(state)

    def _load(self, state: list[list[dict[str, Any]]]) -> None:
        if [len(groups) for groups in state] != [len(split.base.param_groups) for split in self._splits]:
            raise ConfigurationError(
                f"The checkpoint has {[len(g) for g in state]} parameter groups per optimizer, the module now "
                f"configures {[len(s.base.param_groups) for s in self._splits]}; resume with the optimizer that the "
                "run began with."
            )
        for split, groups in zip(self._splits, state, strict=True):
            for group, saved in zip(split.base.param_groups, groups, strict=True):
                for name, value in saved.items():
                    _assign(group, name, value)

    def _groups(
        self, optimizer: Optimizer, names: Mapping[Parameter, str]
    ) -> tuple[list[dict[str, Any]], list[int], list[tuple[Hashable, ...]], list[list[int]]]:
        groups: list[dict[str, Any]] = []
        origin: list[int] = []
        all_keys: list[tuple[Hashable, ...]] = []
        places: list[list[int]] = []
        before = 0
        many = len(optimizer.param_groups) > 1
        for index, group in enumerate(optimizer.param_groups):
            parts: dict[tuple[str, tuple[Hashable, ...]], list[int]] = {}
            for position, parameter in enumerate(group["params"]):
                keys = tuple(source.rate_key(parameter) for source in self.sources)
                parts.setdefault((names.get(parameter, "other"), keys), []).append(position)
            suffix = f"/{group.get('name', f'pg{index + 1}')}" if many else ""
            # In order of first appearance: a clipping norm sums over the parameters in the optimizer's order.
            for (layer, keys), positions in parts.items():
                groups.append({**_without_parameters(group), **_parameters(group, positions), "name": layer + suffix})
                origin.append(index)
                all_keys.append(keys)
                places.append([before + position for position in positions])
            before += len(group["params"])
        _number_duplicates(groups)
        return groups, origin, all_keys, places

    def _factors(self, keys: tuple[Hashable, ...]) -> tuple[float, float]:
        factor = ramp = 1.0
        for source, key in zip(self.sources, keys, strict=True):
            factor *= source.rate_factor(key)
            ramp *= source.rate_ramp(key)
        return factor, ramp


def _take_over(split: _Split) -> None:
    rates = [group.get("lr") for group in split.real.param_groups]
    known = all("lr" in written for written in split.written) and None not in rates
    if not known or any(not _same(rate, rates[0]) for rate in rates):
        return
    if any(not _same(rate, written["lr"]) for rate, written in zip(rates, split.written, strict=True)):
        for group in split.base.param_groups:
            _assign(group, "lr", rates[0])
        for rate, written in zip(rates, split.written, strict=True):
            written["lr"] = _copy(rate)


def _sets_its_own_rate(optimizer: Optimizer) -> bool:
    # transformers' Adafactor; its schedule then only reads rates, of the groups that it was made for.
    return any(group.get("lr") is None or group.get("relative_step") for group in optimizer.param_groups)


def _refuse_to_scale(optimizer: Optimizer, keys: Iterable[tuple[Hashable, ...]]) -> None:
    if any(key != () for own_keys in keys for key in own_keys):
        name = type(optimizer).__name__
        raise ConfigurationError(
            f"{name} sets its own learning rate (relative_step=True), so no callback can scale it; leave out "
            f"DiscriminativeLR and warmup_steps, or give it a rate: {name}(..., lr=1e-3, relative_step=False, "
            f"warmup_init=False)."
        )


def _without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {k: copy.deepcopy(v) for k, v in group.items() if k not in _OWN}


def _parameters(group: Mapping[str, Any], positions: list[int]) -> dict[str, Any]:
    return {key: [group[key][i] for i in positions] for key in ("params", "param_names") if key in group}


def _number_duplicates(groups: list[dict[str, Any]]) -> None:
    # One layer can need several groups (single parameters chosen by a glob); LearningRateMonitor insists on unique
    # names.
    names = [group["name"] for group in groups]
    seen: dict[str, int] = {}
    for group in groups:
        name = group["name"]
        if names.count(name) > 1:
            seen[name] = seen.get(name, 0) + 1
            group["name"] = f"{name}#{seen[name]}"


def _assign(group: dict[str, Any], name: str, value: Any) -> None:
    old = group.get(name)
    if isinstance(old, torch.Tensor) and isinstance(value, (int, float, torch.Tensor)):
        old.fill_(float(value))  # in place: a compiled or capturable optimizer keeps hold of the tensor
    else:
        group[name] = _copy(value)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else copy.copy(value)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) or isinstance(right, torch.Tensor):
        return left is not None and right is not None and float(left) == float(right)
    return bool(left == right)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
