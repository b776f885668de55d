"""Which layers a strategy may give a turn of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from lightning_freeze.layers import Layer


def candidates(layers: Iterable[Layer], beside: Collection[str]) -> list[str]:
    """Names of the layers that can train, in the order of the data flow.

    Args:
        layers: The layers to choose from.
        beside: Names of layers that train anyway, and are left out.
    """
    return [
        layer.name
        for layer in sorted(layers, key=lambda layer: layer.index)
        if layer.name not in beside and not layer.is_bystander and layer.parameters()
    ]
