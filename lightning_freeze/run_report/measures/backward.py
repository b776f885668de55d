"""How far backward runs, as the structure of the module says."""

from __future__ import annotations

from lightning_freeze.layers.analysis.backward_extent import backward_leaks
from lightning_freeze.run_report.measures.run_layers import RunLayers


def frozen_layers_passed(layers: RunLayers) -> tuple[list[int], bool]:
    """The frozen layers that backward runs through, because something that trains feeds them.

    Args:
        layers: The layers, frozen as they are now.

    Returns:
        Their indices, and whether the structure proves it for all of them.
    """
    leaks = backward_leaks(layers.stack)
    names = {name for leak in leaks for name in leak.layers}
    return [i for i, name in enumerate(layers.names) if name in names], all(leak.is_certain for leak in leaks)
