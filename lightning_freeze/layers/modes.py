"""Which modules may be put in ``eval()`` mode when parameters are frozen."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from lightning.pytorch import LightningModule
from torch import nn

from lightning_freeze.layers.layer import Layers
from lightning_freeze.namespaces import either


def eval_modules(stack: Layers, layers: AbstractSet[int], parameters: AbstractSet[int]) -> tuple[nn.Module, ...]:
    """The modules that follow a set of frozen parameters into ``eval()`` mode.

    These are all modules of the frozen layers, and every container that spans several layers and whose parameters
    are all frozen: layer drop and SpecAugment follow the flag of the container, not of the blocks.

    Args:
        stack: The layers.
        layers: Indices of the layers that are frozen as a whole.
        parameters: ``id`` of every frozen parameter.

    Returns:
        Modules, children before their parents.
    """
    found: dict[int, nn.Module] = {}
    known: dict[int, tuple[bool, bool]] = {}

    def visit(module: nn.Module) -> tuple[bool, bool]:
        """Whether there are parameters here and below, and whether all of them are frozen."""
        if id(module) in known:
            return known[id(module)]
        below = [visit(child) for child in module._modules.values() if child is not None]
        own = [id(p) in parameters for p in module._parameters.values() if p is not None]
        known[id(module)] = bool(own) or any(some for some, _ in below), all(own) and all(every for _, every in below)
        layer = stack.layer_of_module(module)
        # Lightning itself manages the flag of the LightningModule.
        spans = layer is None and known[id(module)] == (True, True) and not isinstance(module, either(LightningModule))
        if spans or (layer is not None and layer.index in layers):
            found[id(module)] = module
        return known[id(module)]

    visit(stack.module)
    # A dropout between explicit groups is in no layer; it follows the mode of the container around it.
    for container in [module for module in found.values() if stack.layer_of_module(module) is None]:
        for module in container.modules():
            if stack.layer_of_module(module) is None and not known[id(module)][0]:
                found.setdefault(id(module), module)
    return tuple(found.values())


def whole_layers(stack: Layers, parameters: AbstractSet[int]) -> set[int]:
    """Indices of the layers whose parameters are all in ``parameters``.

    A layer without parameters of its own (a tied head) counts if all of its shared parameters are in there.

    Args:
        stack: The layers.
        parameters: ``id`` of every frozen parameter.

    Returns:
        Indices in the stack.
    """
    found = set()
    for layer in stack:
        used = layer.parameters() or [p for module in layer.modules() for p in module.parameters(recurse=False)]
        if used and all(id(p) in parameters for p in used):
            found.add(layer.index)
    return found
