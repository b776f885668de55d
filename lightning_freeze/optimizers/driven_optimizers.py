"""Optimizers that drive others: wrappers, such as SAM and Lookahead, and lists of optimizers behind one step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.nn import Parameter
from torch.optim import Optimizer


def driven_by(optimizer: Any) -> list[Optimizer]:
    """The optimizers that another one keeps in its attributes, in lists and maps too, and those that they drive."""
    found: dict[int, Optimizer] = {}
    pending = list(_kept(optimizer))
    while pending:
        inner = pending.pop(0)
        if inner is not optimizer and id(inner) not in found:
            found[id(inner)] = inner
            pending += _kept(inner)
    return list(found.values())


def held_by(optimizer: Any) -> Iterator[Parameter]:
    """The parameters in the groups of an optimizer."""
    for group in optimizer.param_groups:
        yield from group["params"]


def _kept(optimizer: Any) -> Iterator[Optimizer]:
    for value in getattr(optimizer, "__dict__", {}).values():
        items = value.values() if type(value) is dict else value if isinstance(value, (list, tuple)) else [value]
        yield from (item for item in items if isinstance(item, Optimizer))
