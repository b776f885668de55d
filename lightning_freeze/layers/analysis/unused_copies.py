"""Parameters that a model holds but does not use: the originals of copies that PEFT trains."""

from __future__ import annotations

from torch import nn
from torch.nn import Parameter


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
