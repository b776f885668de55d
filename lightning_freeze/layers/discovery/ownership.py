"""Which layer owns which parameter and which module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from torchmetrics import Metric, MetricCollection

from lightning_freeze.layers.discovery.structure import LayerSpec


@dataclass(frozen=True, eq=False)
class ParameterRef:
    """Where a parameter lives.

    The parameter is looked up on each access, because materialising a meta model or sharding it replaces the objects.

    Attributes:
        name: Full name, as ``named_parameters()`` of the whole module gives it.
        owner: The module that holds it.
        key: Its name there.
        aliases: Further full names of the same parameter.
    """

    name: str
    owner: nn.Module
    key: str
    aliases: tuple[str, ...] = ()

    @property
    def parameter(self) -> nn.Parameter:
        """The current parameter."""
        return getattr(self.owner, self.key)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Tie:
    """A parameter that two layers use.

    Attributes:
        name: Full name in the layer that owns it.
        layer: Name of the layer that owns it, the first one to use it.
        alias: Full name in the other layer.
        used_by: Name of the other layer.
    """

    name: str
    layer: str
    alias: str
    used_by: str


class _Registration(NamedTuple):
    """One place where a parameter is registered, and the layer that this place belongs to (-1 for none)."""

    name: str
    owner: nn.Module
    key: str
    layer: int


class Ownership:
    """Assigns every parameter and module of ``root`` to the first layer that claims it.

    Args:
        root: The whole module.
        layers: Its layers, in order.

    Attributes:
        parameters: For each layer the parameters that it owns.
        modules: For each layer its modules; a module that spans several layers is in none.
        unassigned: Parameters that no layer claims.
        ties: Parameters that a second layer uses as well.
    """

    def __init__(self, root: nn.Module, layers: Sequence[LayerSpec]) -> None:
        """Assign the parameters and modules of ``root``."""
        self._claim(root, layers)
        self._owned: dict[int, tuple[nn.Module, int]] = {}
        self._registrations: list[_Registration] = []
        self._span(root, "", None, root)
        self.modules = tuple(
            tuple(module for module, owner in self._owned.values() if owner == index) for index in range(len(layers))
        )
        self._assign_parameters([layer.name for layer in layers])

    def _claim(self, root: nn.Module, layers: Sequence[LayerSpec]) -> None:
        """Resolve names to objects, so that a module registered twice is one module."""
        named = dict(root.named_modules(remove_duplicate=False))
        self._modules_of: dict[int, int] = {}
        self._single: dict[tuple[int, str], int] = {}
        for index, layer in enumerate(layers):
            for prefix in layer.prefixes:
                if prefix in named:
                    self._modules_of.setdefault(id(named[prefix]), index)
                else:
                    owner, _, key = prefix.rpartition(".")
                    self._single[id(named[owner]), key] = index

    def _span(self, module: nn.Module, name: str, claimed: int | None, root: nn.Module) -> set[int]:
        """Walk the tree; returns the layers that a module's content belongs to, -1 standing for none."""
        if isinstance(module, Metric | MetricCollection):
            self._registrations += [
                _Registration(f"{name}.{key}", *_place(module, key), -1) for key, _ in module.named_parameters()
            ]
            return set()
        claimed = self._modules_of.get(id(module), claimed)
        spans: set[int] = set()
        for key, parameter in module._parameters.items():
            if parameter is not None:
                index = self._single.get((id(module), key), -1 if claimed is None else claimed)
                self._registrations.append(_Registration(f"{name}.{key}" if name else key, module, key, index))
                spans.add(index)
        for key, child in module._modules.items():
            if child is not None:
                spans |= self._span(child, f"{name}.{key}" if name else key, claimed, root)
        if claimed is not None:
            self._owned.setdefault(id(module), (module, claimed))
            return spans or {claimed}
        if len(spans) == 1 and -1 not in spans and module is not root:
            self._owned.setdefault(id(module), (module, next(iter(spans))))
        return spans

    def _assign_parameters(self, names: Sequence[str]) -> None:
        places: dict[int, list[_Registration]] = {}
        for use in self._registrations:
            places.setdefault(id(getattr(use.owner, use.key)), []).append(use)
        assigned: list[list[ParameterRef]] = [[] for _ in names]
        unassigned: list[ParameterRef] = []
        ties: list[Tie] = []
        for uses in places.values():
            claimed = [use for use in uses if use.layer >= 0]
            home, others = uses[0], tuple(dict.fromkeys(use.name for use in uses[1:]))
            reference = ParameterRef(home.name, home.owner, home.key, others)
            if not claimed:
                unassigned.append(reference)
                continue
            first = min(claimed, key=lambda use: use.layer)
            assigned[first.layer].append(reference)
            later = {use.layer: use for use in reversed(claimed) if use.layer != first.layer}
            ties += [
                Tie(first.name, names[first.layer], use.name, names[use.layer])
                for _, use in sorted(later.items(), key=lambda entry: entry[0])
            ]
        self.parameters = tuple(tuple(references) for references in assigned)
        self.unassigned = tuple(unassigned)
        self.ties = tuple(ties)


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, key = name.rpartition(".")
    return module.get_submodule(owner), key
