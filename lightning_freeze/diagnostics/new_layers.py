"""Which layers of a pre-trained model no checkpoint gave: known from the marks and the values of their parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from lightning_freeze.checkpoints.loaded import is_loaded

#: Fewer weights than this are too few to recognise an initialisation by their values.
_ENOUGH = 32

#: How far the spread of the weights may be from that of the initialisation, as a share of it.
_TOLERANCE = 0.3


class NewLayer(NamedTuple):
    """A linear layer that has its random initialisation.

    Attributes:
        name: Its name in the module.
        module: The layer.
    """

    name: str
    module: nn.Linear

    @property
    def weight(self) -> Parameter:
        """Its weight."""
        return self.module.get_parameter("weight")


def is_untouched(layer: nn.Linear) -> bool:
    """Whether only their initialisation has written to the parameters of a layer, and no checkpoint gave them.

    Loading a state dict, an optimizer step and any other write in place count as a second time.

    Args:
        layer: The layer.
    """
    parameters = list(layer.parameters(recurse=False))
    return all(not is_loaded(p) and not p.is_meta and p._version == 1 for p in parameters)


def new_layers(root: nn.Module) -> list[NewLayer]:
    """The linear layers that are at their random initialisation in a model that has loaded weights.

    A layer counts only if nothing has written to it since (:func:`is_untouched`), and its values are those of an
    initialisation (:func:`fits_initialisation`). So a head whose weights were set in any way is not new. The pooler of
    a bare encoder does not count, because it runs whether its output is used or not. Models that PEFT has wrapped have
    no new layers: what they train is new by design.

    Args:
        root: The module, before its first optimizer step.
    """
    return [] if any(hasattr(m, "peft_config") for m in root.modules()) else _at_initialisation(root)


def new_weights(root: nn.Module) -> set[Tensor]:
    """The parameters and buffers that no pre-trained checkpoint gave, so that building the module again gives others.

    Where transformers has loaded any weight of the module, these are all that it has not loaded, inside the model (a
    pooler) and beside it: how a layer was initialised does not show in its values, and to save a weight too many does
    no harm. Where it has loaded none, the adapters of PEFT are new, with its copies of modules that train as a whole.

    Args:
        root: The module, before its first optimizer step.
    """
    new: set[Tensor] = {parameter for module in root.modules() for parameter in _adapters_of(module)}
    if any(map(is_loaded, root.parameters())):
        new |= {tensor for tensor in (*root.parameters(), *root.buffers()) if not is_loaded(tensor)}
    return new


def _adapters_of(module: nn.Module) -> Iterator[Parameter]:
    """The parameters of a layer of PEFT that it has added to what it wraps."""
    for name in getattr(module, "adapter_layer_names", ()):
        added = getattr(module, name, None)
        if isinstance(added, Parameter):
            yield added
        elif isinstance(added, nn.Module):
            yield from added.parameters()


def _at_initialisation(root: nn.Module) -> list[NewLayer]:
    if not any(is_loaded(p) for p in root.parameters()):
        return []
    spreads = set(_initial_spreads(root))
    return [
        NewLayer(name, module)
        for name, module in root.named_modules()
        if type(module) is nn.Linear
        and not ("pooler" in name and _is_in_bare_encoder(root, name))
        and is_untouched(module)
        and any(fits_initialisation(module.weight, module.bias, spread) for spread in (None, *spreads))
    ]


@torch.no_grad()
def fits_initialisation(weight: Tensor, bias: Tensor | None, spread: float | None) -> bool:
    """Whether weights look like those of an initialisation.

    Args:
        weight: The weight of a linear layer ``(out, in)``.
        bias: Its bias.
        spread: The standard deviation of transformers' normal initialisation, beside which biases are 0; ``None`` for
            the initialisation of torch, which is uniform within ``1 / sqrt(in)``.
    """
    if weight.numel() < _ENOUGH:
        return False
    bound = 1 / math.sqrt(weight.shape[1])
    if spread is None:
        is_within = bool(weight.abs().max() <= bound) and (bias is None or bool(bias.abs().max() <= bound))
        return is_within and _is_near(float(weight.std()), bound / math.sqrt(3))
    return _is_near(float(weight.std()), spread) and (bias is None or not bias.any())


def _is_in_bare_encoder(root: nn.Module, name: str) -> bool:
    parts = name.split(".")
    owners = [root.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
    return not any(getattr(owner, "base_model", owner) is not owner for owner in owners)


def _is_near(value: float, expected: float) -> bool:
    return abs(value - expected) <= _TOLERANCE * expected


def _initial_spreads(root: nn.Module) -> Iterator[float]:
    for module in root.modules():
        spread = getattr(getattr(module, "config", None), "initializer_range", None)
        if isinstance(spread, (int, float)) and spread > 0:
            yield float(spread)
