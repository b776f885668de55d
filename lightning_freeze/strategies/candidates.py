"""Which layers a strategy may give a turn of their own, and which train beside them."""

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


def with_ends(layers: str, embeddings: bool, head: bool) -> str:
    """The selector of layers, with the embeddings before and the head after them.

    Args:
        layers: A selector; empty for the ends alone.
        embeddings: Whether to add the embeddings.
        head: Whether to add the head.
    """
    return ",".join(
        term for term, is_wanted in (("embeddings", embeddings), (layers, layers), ("head", head)) if is_wanted
    )
