"""One layer, and the protocol by which the other files of this room see all layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import nn

from lightning_freeze.layers.discovery.networks.heights import tower_of
from lightning_freeze.layers.discovery.ownership import ParameterRef, Tie
from lightning_freeze.layers.discovery.structure import Kind, LayerSpec


class Layer:
    """One step of the depth order: the embeddings, one block, the head, or a group that the user named.

    Attributes:
        name: Name in the stack; a block's name ends in its number.
        kind: ``"embeddings"``, ``"block"``, ``"head"`` or ``"group"``.
        index: Position in the stack.
        prefixes: Full names of the modules and single parameters that make up the layer.
        repeats: How many times one forward pass runs it; more than one where weights are shared between depths.
        height: Distance to the output along the data flow: 0 for a head, 1 for the block below it. Networks that
            are not connected have separate heights.
        is_bystander: Whether it belongs to a network that takes no part in training, such as a frozen teacher.
    """

    def __init__(
        self,
        spec: LayerSpec,
        index: int,
        references: tuple[ParameterRef, ...],
        modules: tuple[nn.Module, ...],
        height: int,
    ) -> None:
        """Made by :class:`LayerStack`."""
        self.name = spec.name
        self.kind: Kind = spec.kind
        self.index = index
        self.prefixes = tuple(spec.prefixes)
        self.repeats = spec.passes
        self.height = height
        self.is_bystander = spec.is_bystander
        self._references = references
        self._modules = modules

    @property
    def is_block(self) -> bool:
        """Whether slices, negative numbers and percentages count this layer."""
        return self.kind in ("block", "group")

    @property
    def tower(self) -> str:
        """Name of the tower that the layer belongs to (``"encoder"`` for ``"encoder.3"``), ``""`` without towers."""
        return tower_of(self.name)

    @property
    def numel(self) -> int:
        """Number of elements in all parameters; parameters that are not initialised yet count as none."""
        return sum(p.numel() for p in self.parameters() if not isinstance(p, nn.UninitializedParameter))

    @property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Further names of the parameters that are shared: own full name to the other full names."""
        return {ref.name: ref.aliases for ref in self._references if ref.aliases}

    def modules(self) -> list[nn.Module]:
        """All modules of the layer, those without parameters (dropout) included."""
        return list(self._modules)

    def parameters(self) -> list[nn.Parameter]:
        """All parameters of the layer; none of them is in another layer."""
        return [ref.parameter for ref in self._references]

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Pairs of the full name in the module and the parameter."""
        return [(ref.name, ref.parameter) for ref in self._references]

    def __repr__(self) -> str:
        """Name and number of parameters."""
        return f"Layer({self.name!r}, {len(self._references)} parameters)"


class Layers(Protocol):
    """The ordered layers of a module, as a :class:`~lightning_freeze.LayerStack` has them.

    Functions that select, analyse or show layers take this protocol, because the stack is built on top of them.
    """

    module: nn.Module
    from_groups: bool
    ties: tuple[Tie, ...]

    @property
    def names(self) -> list[str]: ...  # noqa: D102

    @property
    def layers(self) -> tuple[Layer, ...]: ...  # noqa: D102

    @property
    def blocks(self) -> tuple[Layer, ...]: ...  # noqa: D102

    @property
    def networks(self) -> list[list[Layer]]: ...  # noqa: D102

    @property
    def towers(self) -> dict[str, tuple[Layer, ...]]: ...  # noqa: D102

    @property
    def tower_aliases(self) -> dict[str, str]: ...  # noqa: D102

    @property
    def parameter_names(self) -> frozenset[str]: ...  # noqa: D102

    @property
    def unassigned(self) -> list[tuple[str, nn.Parameter]]: ...  # noqa: D102

    def layer_of(self, parameter: nn.Parameter) -> Layer | None: ...  # noqa: D102

    def layer_of_module(self, module: nn.Module) -> Layer | None: ...  # noqa: D102

    def __iter__(self) -> Iterator[Layer]: ...

    def __len__(self) -> int: ...

    def __contains__(self, name: object) -> bool: ...

    def __getitem__(self, key: str | int) -> Layer: ...
