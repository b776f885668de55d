"""How far each layer is from the output, along the data flow rather than along the list of layers."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_freeze.layers.discovery.networks.connections import consumers_of
from lightning_freeze.layers.discovery.structure import FedBy, LayerSpec


def tower_of(name: str) -> str:
    """Name of the tower in a layer's name (``"encoder"`` of ``"encoder.3"``), ``""`` without one."""
    tower, _, last = name.rpartition(".")
    return tower if last.isdecimal() or last in ("embeddings", "head") else ""


def find_heights(layers: Sequence[LayerSpec], fed_by: FedBy) -> list[int]:
    """The height of each layer: 0 for a head (or the top layer without one), 1 for the block below it, and so on.

    Towers that do not depend on each other stand side by side: the top blocks of both have the same height. A tower
    stands below all that depend on it (an encoder below its decoders, a vision tower below the language model).
    Bystanders have heights of their own.

    Args:
        layers: The layers in order.
        fed_by: The sources of each tower.

    Returns:
        One height for each layer.
    """
    heights = [0] * len(layers)
    for apart in (False, True):
        numbers = [i for i, layer in enumerate(layers) if layer.is_bystander is apart]
        for i, height in zip(numbers, _heights([layers[i] for i in numbers], fed_by), strict=True):
            heights[i] = height
    return heights


def _heights(layers: Sequence[LayerSpec], fed_by: FedBy) -> list[int]:
    towers = list(dict.fromkeys(t for layer in layers if (t := tower_of(layer.name))))
    if not towers:
        return [len(layers) - 1 - i for i in range(len(layers))]
    head = [layer for layer in layers if not tower_of(layer.name) and layer.kind == "head"]
    below = [layer for layer in layers if not tower_of(layer.name) and layer.kind == "embeddings"]
    found: dict[str, int] = {layer.name: 0 for layer in head}
    above = {tower: consumers_of(tower, towers, fed_by) for tower in towers}
    with_head = {tower_of(layer.name) for layer in layers if layer.kind == "head"}
    tops: dict[str, int] = {}
    for tower in reversed(towers):
        base = max((tops[other] for other in above[tower]), default=0)
        siblings = {other for other in towers if above[other] == above[tower]}
        start = base + bool(siblings & with_head or (head and base == 0))
        own = [layer for layer in layers if tower_of(layer.name) == tower]
        blocks = [layer for layer in own if layer.kind != "head"]
        found.update({layer.name: base for layer in own if layer.kind == "head"})
        found.update({layer.name: start + n for n, layer in enumerate(reversed(blocks))})
        tops[tower] = start + len(blocks)
    highest = max((found[layer.name] for layer in layers if layer.name in found and layer not in head), default=-1)
    found.update({layer.name: highest + 1 + n for n, layer in enumerate(reversed(below))})
    return [found[layer.name] for layer in layers]
