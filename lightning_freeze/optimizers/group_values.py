"""Copying and comparing the values of a parameter group: numbers, tensors, and lists and tuples of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

#: What a group has for each of its parameters, rather than once for all.
PER_PARAMETER = ("params", "param_names")


class _TensorMark(NamedTuple):
    tensor: Tensor
    version: int


def copy_value(value: Any) -> Any:
    """A copy that shares no tensor, list or tuple with ``value``; parameters and other objects stay themselves."""
    if isinstance(value, Tensor) and not isinstance(value, Parameter):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(map(copy_value, value))
    return value


def mark(value: Any) -> Any:
    """What :func:`is_unchanged` needs to tell whether a value has been changed, in place or not."""
    # A tensor's version tells it without a copy, and without waiting for an accelerator.
    return _TensorMark(value, value._version) if isinstance(value, Tensor) else copy_value(value)


def is_unchanged(value: Any, marked: Any) -> bool:
    """Whether a value is what it was when it was marked. Another tensor of equal value counts as unchanged."""
    if not isinstance(marked, _TensorMark):
        return is_equal(value, marked)
    if value is marked.tensor:
        return value._version == marked.version
    return is_equal(value, marked.tensor)


def is_equal(left: Any, right: Any) -> bool:
    """Whether two values are the same object or equal; tensors may be on different devices."""
    if left is right:
        return True
    if type(left) in (list, tuple) and type(right) in (list, tuple):
        return len(left) == len(right) and all(map(is_equal, left, right))
    try:
        if isinstance(left, Tensor) and isinstance(right, Tensor):
            return torch.equal(left, right.to(left.device))
        return bool(left == right)
    except (TypeError, ValueError, RuntimeError):  # an object whose comparison is not a truth value
        return False


def scaled(value: Any, factor: float, into: Any = None) -> Any:
    """``value * factor``; for tensors in place of ``into`` where that fits, as compiled optimizers keep hold of it."""
    if not isinstance(value, Tensor):
        return value if factor == 1 else value * factor  # `None` where the optimizer sets its own rate
    if isinstance(into, Tensor) and (into.shape, into.dtype, into.device) == (value.shape, value.dtype, value.device):
        return into.copy_(value.detach()).mul_(factor)
    return value.detach() * factor
