"""Copying and comparing the values of a parameter group: numbers, tensors and containers of them."""

from __future__ import annotations

from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter


class _TensorMark(NamedTuple):
    tensor: Tensor
    version: int


def copy_value(value: Any) -> Any:
    """A copy that shares no tensor and no container with ``value``; parameters and other objects stay themselves."""
    if isinstance(value, Tensor) and not isinstance(value, Parameter):
        return value.detach().clone()
    if type(value) is tuple:
        copied = tuple(map(copy_value, value))
        return value if all(map(is_, copied, value)) else copied
    if type(value) in (list, set):
        return type(value)(map(copy_value, value))
    if type(value) is dict:
        return {key: copy_value(item) for key, item in value.items()}
    return value


def mark(value: Any) -> Any:
    """What :func:`is_unchanged` needs to tell whether a value has been changed, in place or not."""
    # A tensor's version tells it without a copy, and without waiting for an accelerator.
    return _TensorMark(value, value._version) if isinstance(value, Tensor) else copy_value(value)


def is_unchanged(value: Any, marked: Any) -> bool:
    """Whether a value is what it was when it was marked. Another tensor of equal value counts as unchanged."""
    if value is marked:  # an object that cannot change: the mark of another one is a copy
        return True
    if isinstance(marked, _TensorMark):
        if value is marked.tensor:
            return value._version == marked.version
        marked = marked.tensor
    return _equal(value, marked)


def scaled(value: Any, factor: float, into: Any = None) -> Any:
    """``value * factor``; for tensors in place of ``into`` where that fits, as compiled optimizers keep hold of it."""
    if not isinstance(value, Tensor):
        return value if factor == 1 else value * factor
    if isinstance(into, Tensor) and (into.shape, into.dtype, into.device) == (value.shape, value.dtype, value.device):
        return into.copy_(value.detach()).mul_(factor)
    return value.detach() * factor


def plain(value: Any) -> Any:
    """A copy of a value for a checkpoint that is read with ``weights_only=True``.

    Raises:
        ValueError: If such a checkpoint cannot hold it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    if type(value) in (bool, int, float, str, type(None), Tensor):
        return copy_value(value)
    raise ValueError(f"a checkpoint cannot hold {value!r} as plain data")


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and torch.equal(left, right.to(left.device))
    if type(left) in (list, tuple) and type(right) in (list, tuple):
        return len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return False
    try:
        return bool(left == right)
    except (TypeError, ValueError, RuntimeError):  # an object whose comparison is not a truth value
        return False
