"""What an unknown class of optimizer does in a step, tried on a copy of it with small parameters of its own.

The steps of ``torch.optim`` skip parameters without a gradient and accept any learning rate for each group. Other steps
may not: some Muon implementations turn a missing gradient into zeros and go on decaying the weights, and Prodigy
accepts only one rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_freeze.optimizers.group_values import PER_PARAMETER, copy_value, scaled
from lightning_freeze.optimizers.optimizer_copy import copy_optimizer


def has_known_step(optimizer: Optimizer) -> bool:
    """Whether the step is one of torch's own, which needs no trial."""
    return type(optimizer).step.__module__.startswith("torch.optim.")


def moves_without_gradient(optimizer: Optimizer) -> bool:
    """Whether an optimizer may change a parameter that has no gradient.

    Returns:
        Whether the copy has done so; true as well where no step of a copy can be tried.
    """
    if has_known_step(optimizer):
        return False
    try:
        with _trial(optimizer, [1.0]) as (trial, parameters):
            trial.step(_closure)
            frozen = parameters[::2]  # the others go on having a gradient: some steps insist on one
            for parameter in frozen:
                parameter.grad = None
                parameter.requires_grad_(False)
            before = [parameter.clone() for parameter in frozen]
            trial.step(_closure)
            return not all(map(torch.equal, before, frozen))
    except Exception:  # whatever the unknown code raises
        return True


def refusal_of_rates(optimizer: Optimizer, factors: tuple[float, ...]) -> Exception | None:
    """What an optimizer raises when a group is split by different learning rates, though not when it stays whole.

    Args:
        optimizer: The optimizer.
        factors: The factors of the groups to try.
    """
    if has_known_step(optimizer):
        return None
    refusal = _error_of_step(optimizer, list(factors))
    is_tried = refusal is None or _error_of_step(optimizer, [1.0]) is None
    return refusal if is_tried else None


def _error_of_step(optimizer: Optimizer, factors: list[float]) -> Exception | None:
    try:
        with _trial(optimizer, factors) as (trial, _):
            trial.step(_closure)
    except Exception as error:  # whatever the unknown code raises
        return error
    return None


@contextmanager
def _trial(optimizer: Optimizer, factors: list[float]) -> Iterator[tuple[Optimizer, list[Parameter]]]:
    groups, parameters, stand_ins = [], [], {}
    for group in optimizer.param_groups:
        trained = [parameter for parameter in group["params"] if parameter.is_floating_point()]
        for factor in factors if trained else ():
            pair = [_stand_in(trained[0]) for _ in range(2)]
            values = {k: copy_value(v) for k, v in group.items() if k not in PER_PARAMETER}
            if group.get("lr") is not None:
                # Large rates: a small one times a small decay would be lost in rounding.
                values["lr"] = scaled(group["lr"], 0.0) + factor
            groups.append({**values, "params": pair})
            parameters += pair
            stand_ins.update({id(parameter): pair[0] for parameter in group["params"]})
    trial = copy_optimizer(optimizer, groups, stand_ins)
    devices = {parameter.device.index for parameter in parameters if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=devices), torch.compiler.set_stance("force_eager"):
        getattr(trial, "train", lambda: None)()  # schedule-free optimizers step in train mode only
        yield trial, parameters


def _closure() -> Any:
    # Lightning passes a closure to every step, and some steps insist on one.
    return torch.zeros(())


def _stand_in(parameter: Parameter) -> Parameter:
    # A plain tensor also in place of a sharded one.
    shape = (2,) * parameter.ndim
    stand_in = Parameter(torch.full(shape, 0.5, dtype=parameter.dtype, device=parameter.device))
    stand_in.grad = torch.full_like(stand_in, 0.1)
    return stand_in
