"""Which optimizers can take one learning rate per layer; the others are refused at the start, with the alternative."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch.nn import Parameter
from torch.optim import LBFGS, Optimizer

from lightning_freeze.errors import ConfigurationError
from lightning_freeze.optimizers.driven_optimizers import driven_by, held_by
from lightning_freeze.optimizers.step_hooks import runs_hooks
from lightning_freeze.optimizers.trial_step import refusal_of_rates

_LEAVE_OUT = "leave out DiscriminativeLR, warmup_steps, and the lr and factors of phases"


def check_optimizer(
    optimizer: Any,
    key_of: Callable[[Parameter], Hashable],
    factor_of: Callable[[Hashable], float],
) -> None:
    """Refuse an optimizer whose learning rates cannot be scaled.

    Args:
        optimizer: The optimizer.
        key_of: The key of a parameter; ``()`` if its rate is never scaled.
        factor_of: The factor of a key now.

    Raises:
        ConfigurationError: If the optimizer sets its own rate, does not run step hooks, or takes one rate only.
    """
    members = [optimizer, *driven_by(optimizer)]
    for member in members:
        _check_rates(member, key_of)
        if isinstance(member, LBFGS):
            raise ConfigurationError(
                f"LBFGS accepts only one parameter group, so no callback can scale the learning rate of single layers; "
                f"{_LEAVE_OUT}, or use a first-order optimizer such as AdamW."
            )
    reached = {id(p) for member in members if runs_hooks(member) for p in held_by(member)}
    if any(id(parameter) not in reached and key_of(parameter) != () for parameter in held_by(optimizer)):
        name = type(optimizer).__name__
        raise ConfigurationError(
            f"{name}.step() does not run the hooks of torch.optim.Optimizer, so no callback can scale its learning "
            f"rates: {_LEAVE_OUT}, or derive {name} from torch.optim.Optimizer, call "
            f"super().__init__(params, defaults), and override step() in the class rather than on the object."
        )
    if len(members) == 1:  # a copy of one that drives others would drive the real ones
        _check_different_rates(optimizer, key_of, factor_of)


def _check_rates(optimizer: Optimizer, key_of: Callable[[Parameter], Hashable]) -> None:
    for group in optimizer.param_groups:
        if all(key_of(parameter) == () for parameter in group["params"]):
            continue
        name = type(optimizer).__name__
        if "lr" not in group and not driven_by(optimizer):
            raise ConfigurationError(
                f"{name} has no learning rate in its parameter groups that a callback could scale; "
                f"{_LEAVE_OUT}, or use an optimizer that has one, such as AdamW."
            )
        if group.get("lr", 0) is None or group.get("relative_step"):  # as transformers' Adafactor
            raise ConfigurationError(
                f"{name} sets its own learning rate (relative_step=True), so no callback can scale it; "
                f"{_LEAVE_OUT}, or give it a rate: {name}(..., lr=1e-3, relative_step=False, "
                f"warmup_init=False)."
            )


def _check_different_rates(
    optimizer: Optimizer, key_of: Callable[[Parameter], Hashable], factor_of: Callable[[Hashable], float]
) -> None:
    factors = {1.0}
    for key in {key_of(parameter) for parameter in held_by(optimizer)} - {()}:
        factor = factor_of(key)
        factors.add(0.5 if factor == 1 else factor)  # a warm-up that has not begun
    refusal = refusal_of_rates(optimizer, tuple(sorted(factors))[:8]) if len(factors) > 1 else None
    if refusal is not None:
        raise ConfigurationError(
            f"{type(optimizer).__name__} does not accept a learning rate for each layer "
            f"({type(refusal).__name__}: {refusal}); "
            f"{_LEAVE_OUT}, or use an optimizer that does, such as AdamW."
        ) from refusal
