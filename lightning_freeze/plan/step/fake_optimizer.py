"""A copy of an optimizer over fake parameters: its step shows memory and operations without computing anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_freeze.rates.optimizer_copy import copy_optimizer


def fake_optimizer(optimizer: Optimizer, fakes: Mapping[Parameter, Tensor]) -> Optimizer:
    """Copy an optimizer, without its state and its hooks.

    Args:
        optimizer: The optimizer.
        fakes: The fake tensor in place of each parameter.
    """
    groups = [
        {**group, "params": [fakes[p] for p in group["params"] if p in fakes]} for group in optimizer.param_groups
    ]
    return copy_optimizer(optimizer, groups, {id(parameter): fake for parameter, fake in fakes.items()})


def state_bytes(optimizers: Iterable[Optimizer]) -> int:
    """Bytes of all tensors in the state of optimizers."""
    states = [state for optimizer in optimizers for key, state in optimizer.state.items() if isinstance(key, Tensor)]
    return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))
