"""Fake tensors in place of the tensors of a module, wherever the module keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def stand_ins(module: nn.Module, fakes: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Replace the parameters and buffers of a module in this context.

    ``torch.func.functional_call`` does not serve here: it leaves the fake tensors in a submodule that has two names.

    Args:
        module: The module.
        fakes: The tensor in place of each parameter and buffer.
    """
    held: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (tensors, dict(tensors)) for m in module.modules() for tensors in (m._parameters, m._buffers)
    ]
    lists = [(own, list(own)) for m in module.modules() for own in vars(m).values() if _holds(own, fakes)]
    parameters = [parameter for parameter in module.parameters() if parameter.grad is None]
    try:
        for tensors, own in held:
            tensors.update({name: fakes[tensor] for name, tensor in own.items() if tensor is not None})
        for values, given in lists:
            values[:] = [fakes.get(value, value) for value in given]
        yield
    finally:
        for tensors, own in held:
            tensors.clear()
            tensors.update(own)
        for values, given in lists:
            values[:] = given
        for parameter in parameters:  # those that the module keeps in yet another place have got a fake gradient
            parameter.grad = None


def _holds(value: object, fakes: Mapping[Tensor, Tensor]) -> bool:
    """Whether it is a list of parameters, as recurrent layers of PyTorch keep beside their attributes."""
    return type(value) is list and bool(value) and all(isinstance(each, Tensor) and each in fakes for each in value)
