"""Quantised modules that autograd does not know: parameters below them get no gradient, without an error."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import NamedTuple

from torch import nn
from torch.nn import Parameter

from lightning_freeze.layers.discovery.module_tree import QUANTISED
from lightning_freeze.layers.layer import Layers


class Barrier(NamedTuple):
    """A quantised module with trainable parameters below it, or beside it in its layer.

    Attributes:
        module: Full name of the module.
        layer: Name of its layer.
        layers: Names of the layers that have to stay frozen: its own, and those below.
        parameter: Full name of a parameter among them that would train.
    """

    module: str
    layer: str
    layers: tuple[str, ...]
    parameter: str


def find_barrier(stack: Layers, trains: AbstractSet[Parameter]) -> Barrier | None:
    """The highest quantised module that blocks the gradient of parameters that are to train.

    Args:
        stack: The layers.
        trains: Everything that trains at some time.

    Returns:
        The module, ``None`` if there is none.
    """
    names = {module: name for name, module in stack.module.named_modules()}
    for layer in reversed(stack.layers):
        quantised = [module for module in layer.modules() if _passes_no_gradient(module)]
        below = [one for one in stack.layers[: layer.index + 1] if one.tower == layer.tower]
        cut_off = [name for one in below for name, p in one.named_parameters() if p in trains]
        if quantised and cut_off:
            return Barrier(
                min((names[module] for module in quantised), key=len),
                layer.name,
                tuple(one.name for one in below),
                cut_off[0],
            )
    return None


def _passes_no_gradient(module: nn.Module) -> bool:
    # Modules for quantisation-aware training (`torch.ao.nn.qat`) pass gradients on, and so do those of libraries that
    # adapt quantised models.
    return type(module).__module__.startswith(QUANTISED)
