"""What PEFT leaves as it is: weights below adapters, and the originals of copies that it trains."""

from __future__ import annotations

from torch import nn
from torch.nn import Parameter

from lightning_freeze.layers.layer import Layers


def unused_copies(root: nn.Module) -> set[Parameter]:
    """The parameters of modules for which PEFT trains a copy instead (``modules_to_save``).

    Args:
        root: Any module.

    Returns:
        Parameters that no forward pass uses; empty without such copies, and where the adapter is switched off.
    """
    inside: set[nn.Module] = set()
    for module in root.modules():
        original = getattr(module, "original_module", None)
        has_copy = isinstance(getattr(module, "modules_to_save", None), nn.ModuleDict)
        is_active = getattr(module, "active_adapters", None) and not getattr(module, "disable_adapters", False)
        if isinstance(original, nn.Module) and has_copy and is_active:
            inside.update(original.modules())
    used = {p for module in root.modules() if module not in inside for p in module.parameters(recurse=False)}
    return {p for module in inside for p in module.parameters(recurse=False)} - used


def frozen_by_peft(module: nn.Module) -> set[Parameter]:
    """The parameters that PEFT keeps frozen: all of a model with adapters that do not require grad.

    To unfreeze a layer of such a model is to let its adapters train.

    Args:
        module: Any module.

    Returns:
        Parameters; empty without adapters, and for parts outside of what PEFT has wrapped.
    """
    wrapped = [part for part in module.modules() if hasattr(part, "peft_config")]
    return {parameter for part in wrapped for parameter in part.parameters() if not parameter.requires_grad}


def layers_without_adapters(stack: Layers) -> set[str]:
    """The names of the layers in which PEFT keeps every parameter frozen, so that unfreezing them trains nothing.

    Args:
        stack: The layers, with ``requires_grad`` as the module itself has set it.
    """
    frozen = frozen_by_peft(stack.module)
    return {layer.name for layer in stack if (own := layer.parameters()) and frozen.issuperset(own)}
