"""A copy of an optimizer over fake parameters: its step shows memory and operations without computing anything."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer


def fake_optimizer(optimizer: Optimizer, fakes: Mapping[Parameter, Tensor]) -> Optimizer:
    """Copy an optimizer, without its state and its hooks.

    Args:
        optimizer: The optimizer.
        fakes: The fake tensor in place of each parameter.
    """
    groups = [
        {**group, "params": [fakes[p] for p in group["params"] if p in fakes]} for group in optimizer.param_groups
    ]
    fake: Optimizer = object.__new__(type(optimizer))
    own = {k: v for k, v in vars(optimizer).items() if k not in ("state", "param_groups", "step")}
    hooks = {k: OrderedDict[int, Any]() for k in own if k.endswith("_hooks")}
    memo: dict[int, Any] = {id(optimizer): fake, **{id(p): tensor for p, tensor in fakes.items()}}
    attributes = copy.deepcopy({k: v for k, v in own.items() if k not in hooks}, memo)
    vars(fake).update(attributes, **hooks, state=defaultdict(dict), param_groups=groups)
    return fake


def state_bytes(optimizers: Iterable[Optimizer]) -> int:
    """Bytes of all tensors in the state of optimizers."""
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return sum(size_of(value) for state in states for value in state.values() if isinstance(value, Tensor))


def size_of(tensor: Tensor) -> int:
    """Bytes of the elements of a tensor."""
    return tensor.numel() * tensor.element_size()
