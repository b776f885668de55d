"""How far each layer is from the output, along the data flow rather than along the list of layers."""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import groupby

from lightning_freeze.layers.discovery.placement import LayerSpec


def tower_of(name: str) -> str:
    """Name of the tower in a layer's name (``"encoder"`` of ``"encoder.3"``), ``""`` without one."""
    tower, _, last = name.rpartition(".")
    return tower if last.isdecimal() or last in ("embeddings", "head") else ""


def find_heights(layers: Sequence[LayerSpec], fresh: Set[str], bystanders: Set[str] = frozenset()) -> list[int]:
    """The height of each layer: 0 for a head (or the top layer without one), 1 for the block below it, and so on.

    Towers that start from inputs of their own stand side by side: the top blocks of both have the same height. A tower
    that goes on from what others computed (a decoder behind an encoder, a language model behind a vision tower) stands
    above all that come before it.

    Args:
        layers: The layers in order.
        fresh: Names of the towers that start from inputs of their own.
        bystanders: Names of the towers that take no part; they have heights of their own.

    Returns:
        One height for each layer.
    """
    heights = [0] * len(layers)
    for apart in (False, True):
        numbers = [i for i, layer in enumerate(layers) if (tower_of(layer.name) in bystanders) is apart]
        for i, height in zip(numbers, _heights([layers[i] for i in numbers], fresh), strict=True):
            heights[i] = height
    return heights


def components(towers: Sequence[str], fresh: Set[str]) -> list[list[str]]:
    """Towers by the network that they belong to.

    Args:
        towers: Names of the towers in the order of the data flow.
        fresh: Those that start from inputs of their own.

    Returns:
        The networks; towers of different ones feed nothing into one another.
    """
    found: list[list[str]] = []
    for tower in towers:
        if tower in fresh or not found:
            found.append([tower])
        else:  # goes on from all that came before
            found = [[*(name for network in found for name in network), tower]]
    return found


def _heights(layers: Sequence[LayerSpec], fresh: Set[str]) -> list[int]:
    found: dict[str, int] = {}
    towers = list(dict.fromkeys(t for layer in layers if (t := tower_of(layer.name))))
    head = [layer for layer in layers if not tower_of(layer.name) and layer.kind == "head"]
    below = [layer for layer in layers if not tower_of(layer.name) and layer.kind == "embeddings"]
    if not towers:
        return [len(layers) - 1 - i for i in range(len(layers))]
    found.update({layer.name: 0 for layer in head})
    base, tops = 0, bool(head)
    for continues, group in groupby(reversed(towers), key=lambda tower: tower not in fresh and tower != towers[0]):
        siblings = list(group)
        for tower in siblings:
            own = [layer for layer in layers if tower_of(layer.name) == tower]
            has_head = any(layer.kind == "head" for s in siblings for layer in layers if tower_of(layer.name) == s)
            start = base + (has_head or (tops and base == 0))
            blocks = [layer for layer in own if layer.kind != "head"]
            found.update({layer.name: base for layer in own if layer.kind == "head"})
            found.update({layer.name: start + n for n, layer in enumerate(reversed(blocks))})
            if continues:
                base = start + len(blocks)
    highest = max((found[layer.name] for layer in layers if layer.name in found and layer not in head), default=-1)
    found.update({layer.name: highest + 1 + n for n, layer in enumerate(reversed(below))})
    return [found[layer.name] for layer in layers]
