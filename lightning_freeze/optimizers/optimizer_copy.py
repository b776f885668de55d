"""A copy of an optimizer over other parameters, to see what a step does without touching the optimizer."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.optimizers.group_values import copy_value


def copy_optimizer(optimizer: Optimizer, groups: list[dict[str, Any]], stand_ins: Mapping[int, Tensor]) -> Optimizer:
    """Copy an optimizer without its hooks and without the state of its parameters.

    Args:
        optimizer: The optimizer.
        groups: The parameter groups of the copy.
        stand_ins: What the copy's attributes hold in place of a parameter, by the id of the parameter.
    """
    twin: Optimizer = object.__new__(type(optimizer))
    own = {k: v for k, v in vars(optimizer).items() if k not in ("state", "param_groups", "step")}
    hooks = {k: OrderedDict[int, Any]() for k in own if k.endswith("_hooks")}
    rest = {k: v for k, v in own.items() if k not in hooks}
    memo: dict[int, Any] = {id(optimizer): twin, **stand_ins}
    counters = {k: copy_value(v) for k, v in optimizer.state.items() if not isinstance(k, Tensor)}
    vars(twin).update(copy.deepcopy(rest, memo), **hooks, state=defaultdict(dict, counters), param_groups=groups)
    return twin
