"""What discovery finds: the specification of each layer, and how the networks of a module are connected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["embeddings", "block", "head", "group"]

FedBy = Mapping[str, frozenset[str]]
"""Name of a tower to the names of all towers that it depends on."""


@dataclass
class LayerSpec:
    """What makes up one layer, by name.

    Attributes:
        name: Name of the layer.
        kind: ``"embeddings"``, ``"block"``, ``"head"`` or, from an explicit map, ``"group"``.
        prefixes: Full names of the modules and single parameters that belong to it.
        passes: How many times one forward pass runs it; more than one for weights shared between depths.
        is_bystander: Whether it belongs to a network that takes no part in training.
    """

    name: str
    kind: Kind
    prefixes: list[str] = field(default_factory=list)
    passes: int = 1
    is_bystander: bool = False


@dataclass
class Structure:
    """The layers of a module, as found from its structure.

    Attributes:
        layers: Layers in the order of the data flow.
        towers: Tower label to the attribute it was made from; empty for a single stack.
        ignored: Names of modules that belong to no layer (losses and metrics without parameters).
        assumptions: What the structure left open and how it was decided, one sentence each.
        fed_by: Label of each tower to the labels of the towers that it depends on.
    """

    layers: list[LayerSpec]
    towers: dict[str, str]
    ignored: list[str]
    assumptions: list[str] = field(default_factory=list)
    fed_by: FedBy = field(default_factory=dict)
