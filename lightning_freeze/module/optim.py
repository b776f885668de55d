"""The default optimizer groups and the default learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_freeze.errors import ConfigurationError

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.LocalResponseNorm)


def split_decay(module: nn.Module) -> list[dict[str, Any]]:
    """Split all parameters in two groups, so that norms and biases are kept free of weight decay.

    Every parameter stands in exactly one group, frozen ones included: what is frozen now may be unfrozen later, and
    the groups of an optimizer must not change during a run. A norm is known by its type, or by a type name that ends
    in ``Norm`` (models bring their own RMS norms); any other parameter with fewer than two dimensions is a bias or a
    scale.

    Args:
        module: The module whose parameters are split.

    Returns:
        Groups named ``"decay"`` and ``"no_decay"`` (with ``weight_decay`` 0); a group without parameters is left out.
    """
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    seen: set[int] = set()
    for submodule in module.modules():
        is_norm = isinstance(submodule, _NORMS) or type(submodule).__name__.endswith("Norm")
        for parameter in submodule.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                (no_decay if is_norm or parameter.ndim < 2 else decay).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decay, "name": "decay"},
        {"params": no_decay, "weight_decay": 0.0, "name": "no_decay"},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(factory: Callable[[Any], Optimizer], module: nn.Module) -> Optimizer:
    """Build the user's optimizer over the two groups, or over plain parameters if it knows no weight decay.

    Args:
        factory: Takes parameters or parameter groups, returns an optimizer.
        module: The module whose parameters are optimized.
    """
    try:
        optimizer = factory(split_decay(module))
    except (TypeError, ValueError):
        # Some optimizers (LBFGS) take no groups at all; a wrong setting raises again here, with its own message.
        return factory(list(module.parameters()))
    return optimizer if "weight_decay" in optimizer.defaults else factory(list(module.parameters()))


def linear_warmup_decay(optimizer: Optimizer, total_steps: float, warmup_ratio: float) -> LambdaLR:
    """Return a schedule that rises linearly to the full rate and then falls linearly to 0, one step at a time.

    The first step has a rate above 0 already, so no step is wasted; the step after the last would have rate 0.

    Args:
        optimizer: The optimizer whose rates are scheduled.
        total_steps: Number of optimizer steps of the whole run.
        warmup_ratio: Share of the steps that the rise takes, from 0 up to, but not including, 1.

    Raises:
        ConfigurationError: The run has no known end.
    """
    if total_steps == float("inf"):
        raise ConfigurationError(
            "The default schedule falls to 0 at the end of the run, but this run has no known end: expected "
            "trainer.max_epochs or trainer.max_steps to be set. For an open end, give an lr_scheduler of your own."
        )
    total, warmup = int(total_steps), int(total_steps * warmup_ratio)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (total - step) / max(1, total - warmup))

    return LambdaLR(optimizer, factor)
