"""``LayerStack``: the ordered layers of a module, each parameter in exactly one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from lightning_freeze.errors import suggest
from lightning_freeze.layers.discovery.discover import discover
from lightning_freeze.layers.discovery.groups import Groups, layers_from_groups
from lightning_freeze.layers.discovery.module_hook import ask_module
from lightning_freeze.layers.discovery.module_tree import clean_name
from lightning_freeze.layers.discovery.networks.connections import networks_of
from lightning_freeze.layers.discovery.networks.heights import find_heights
from lightning_freeze.layers.discovery.ownership import Ownership, Tie
from lightning_freeze.layers.discovery.structure import LayerSpec, Structure
from lightning_freeze.layers.layer import Layer
from lightning_freeze.layers.modes import eval_modules, whole_layers
from lightning_freeze.layers.selectors import Selection, select
from lightning_freeze.layers.table import describe
from lightning_freeze.layers.wording import abbreviate


class LayerStack:
    """The layers of a module in the order in which data flows through them.

    The layers are found from the structure of the module: no table of models, no forward pass, no access to the
    weights (meta and lazy parameters work). A parameter that is used in several places belongs to the layer that uses
    it first. A module may define its own layers by a method ``layer_stack()`` that returns a :class:`LayerStack` or a
    map like ``groups``.

    Args:
        module: Any module with parameters; a LightningModule with its own head around an encoder included.
        groups: Explicit, ordered map from layer name to module-name prefixes, instead of looking for the layers, for
            instance ``{"stem": ["conv", "bn"], "body": ["blocks"], "head": "fc"}``. Parameters that it leaves out are
            in no layer.

    Raises:
        ValueError: If the module has no parameters, or ``groups`` does not fit it.

    Examples:
        >>> stack = LayerStack(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)))
        >>> stack.names
        ['0', '1']
    """

    def __init__(self, module: nn.Module, groups: Groups | None = None) -> None:
        """Find the layers, or take them from ``groups`` or from the module's own ``layer_stack()``."""
        if not isinstance(module, nn.Module):
            raise ValueError(f"LayerStack needs a torch.nn.Module, got {type(module).__name__}.")
        self.module = module
        self.from_groups = False
        owner, answer = (module, groups) if groups is not None else ask_module(module)
        if answer is None:
            self._build(discover(module))
        elif isinstance(answer, LayerStack):
            self.from_groups = answer.from_groups
            self._build(_adopt(module, answer))
        elif owner is module:
            self.from_groups = True
            self._build(Structure(layers_from_groups(module, answer), {}, []))
        else:
            self.from_groups = True
            self._build(_adopt(module, LayerStack(owner, groups=answer)))

    def _build(self, structure: Structure) -> None:
        ownership = Ownership(self.module, structure.layers)
        self._aliases = structure.towers
        self.assumptions: tuple[str, ...] = tuple(structure.assumptions)
        """Decisions about points that the structure leaves open; part of :meth:`describe`."""
        self._fed_by = structure.fed_by
        heights = find_heights(structure.layers, structure.fed_by)
        self._layers = tuple(
            Layer(spec, i, ownership.parameters[i], ownership.modules[i], heights[i])
            for i, spec in enumerate(structure.layers)
        )
        self._by_name = {layer.name: layer for layer in self._layers}
        self._unassigned = ownership.unassigned
        self._owner_of_module = {id(m): layer for layer in self._layers for m in layer.modules()}
        self._owner_of_parameter: dict[int, tuple[nn.Parameter, Layer]] = {}
        self.ties: tuple[Tie, ...] = ownership.ties
        """Shared parameters that are used in two different layers."""

    @property
    def names(self) -> list[str]:
        """Names of all layers, in order."""
        return [layer.name for layer in self._layers]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, in order."""
        return self._layers

    @property
    def blocks(self) -> tuple[Layer, ...]:
        """The layers that slices and percentages count: blocks of all towers, or groups; bystanders are left out."""
        return tuple(layer for layer in self._layers if layer.is_block and not layer.is_bystander)

    @property
    def bystanders(self) -> tuple[Layer, ...]:
        """The layers of networks that take no part in training: frozen teachers, averages, models in metrics."""
        return tuple(layer for layer in self._layers if layer.is_bystander)

    @property
    def networks(self) -> list[list[Layer]]:
        """The blocks by network, the lowest first; a percentage counts each network by itself.

        Different networks feed nothing into one another.
        """
        towers = list(dict.fromkeys(layer.tower for layer in self.blocks))
        networks = networks_of(towers, self._fed_by)
        from_below = sorted(self.blocks, key=lambda block: -block.height)
        return [[block for block in from_below if block.tower in network] for network in networks]

    @property
    def towers(self) -> dict[str, tuple[Layer, ...]]:
        """Tower name to its blocks, in order; empty for a model with a single stack."""
        found: dict[str, tuple[Layer, ...]] = {}
        for layer in self._layers:
            if layer.is_block and layer.tower:
                found[layer.tower] = (*found.get(layer.tower, ()), layer)
        return found

    @property
    def tower_aliases(self) -> dict[str, str]:
        """Attribute name of a tower to its name in the layers (``"language_model"`` to ``"text"``)."""
        return {alias: label for label, alias in self._aliases.items() if alias != label}

    @property
    def parameter_names(self) -> frozenset[str]:
        """Full names of all parameters that are in a layer, the further names of shared ones included."""
        owned = {name for layer in self for name, _ in layer.named_parameters()}
        return frozenset(owned.union(*(names for layer in self for names in layer.aliases.values())))

    @property
    def unassigned(self) -> list[tuple[str, nn.Parameter]]:
        """Full name and parameter of everything that an explicit map leaves out."""
        return [(ref.name, ref.parameter) for ref in self._unassigned]

    def layer_of(self, parameter: nn.Parameter) -> Layer | None:
        """The layer that a parameter belongs to; ``None`` if it is in no layer, or not in this module."""
        known = self._owner_of_parameter.get(id(parameter))
        if known is None or known[0] is not parameter:
            self._owner_of_parameter = {id(p): (p, layer) for layer in self for p in layer.parameters()}
            known = self._owner_of_parameter.get(id(parameter))
        return known[1] if known else None

    def layer_of_module(self, module: nn.Module) -> Layer | None:
        """The layer that a module belongs to, ``None`` for a container that spans several layers."""
        return self._owner_of_module.get(id(module))

    def select(self, selector: str) -> Selection:
        """Everything that a selector names; see :mod:`lightning_freeze.layers.selectors` for the grammar.

        Raises:
            ValueError: If a term is malformed or selects nothing.
        """
        return select(self, selector)

    def modules_within(self, parameters: Iterable[nn.Parameter]) -> tuple[nn.Module, ...]:
        """The modules that may be put in ``eval()`` when these parameters are frozen.

        All modules of the layers that are frozen as a whole, and the containers around them in which nothing trains.
        """
        frozen = {id(parameter) for parameter in parameters}
        return eval_modules(self, whole_layers(self, frozen), frozen)

    def describe(self) -> str:
        """One line of summary, then one line for each assumption or shared weight worth knowing."""
        return "\n".join([describe(self), *self.assumptions])

    def signature(self) -> list[dict[str, Any]]:
        """The layer map as plain data, to detect later that the layers of a model have changed.

        Names do not contain what wrappers add, so compiling a model does not change its signature.
        """
        return [
            {"layer": layer.name, "parameters": [clean_name(name) for name, _ in layer.named_parameters()]}
            for layer in self._layers
        ]

    def __iter__(self) -> Iterator[Layer]:
        """Layers in order."""
        return iter(self._layers)

    def __len__(self) -> int:
        """Number of layers."""
        return len(self._layers)

    def __contains__(self, name: object) -> bool:
        """Whether a layer, or a layer of that name, is in the stack."""
        return name in self._by_name or any(name is layer for layer in self._layers)

    def __getitem__(self, key: str | int) -> Layer:
        """A layer by name, or by position in the stack (embeddings and head count)."""
        if isinstance(key, int):
            return self._layers[key]
        if key not in self._by_name:
            raise KeyError(f"No layer is called {key!r}.{suggest(key, self.names)} Layers: {', '.join(self.names)}")
        return self._by_name[key]

    def __repr__(self) -> str:
        """The layers on one line."""
        return f"LayerStack({abbreviate(self)})"


def _adopt(module: nn.Module, stack: LayerStack) -> Structure:
    """Restate the layers of a stack over a part of ``module`` in names of ``module`` itself."""
    wanted = stack.module
    prefix = next((name for name, m in module.named_modules(remove_duplicate=False) if m is wanted), None)
    if prefix is None:
        raise ValueError(
            f"layer_stack() of {type(module).__name__} returned the layers of a {type(wanted).__name__} "
            "that is not part of it."
        )
    dotted = f"{prefix}." if prefix else ""
    specs = [
        LayerSpec(x.name, x.kind, [dotted + p if p else prefix for p in x.prefixes], x.repeats, x.is_bystander)
        for x in stack
    ]
    return Structure(specs, dict(stack._aliases), [], list(stack.assumptions), stack._fed_by)
