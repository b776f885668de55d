"""The parameters and buffers of a module by the names that its state dict gives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.nn import Module


def named_tensors(module: Module) -> dict[str, Any]:
    """The state dict of a module, with its parameters and buffers as the objects that they are.

    Args:
        module: The module. Its own ``state_dict`` may take no arguments, as Lightning calls it without any.
    """
    try:
        return dict(module.state_dict(keep_vars=True))
    except TypeError:
        state = dict(module.state_dict())
    return state | {name: tensor for name, tensor in own_tensors(module) if _is_view(state.get(name), tensor)}


def own_tensors(module: Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a module with their names, shared ones with each.

    Args:
        module: The module.
    """
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _is_view(value: object, tensor: Tensor) -> bool:
    """Whether a value of a state dict is the tensor itself, and not another one that the module saves by its name."""
    return isinstance(value, Tensor) and value.shape == tensor.shape and value.data_ptr() == tensor.data_ptr()
