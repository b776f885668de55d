"""The default optimizer groups and the default learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypedDict

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import Unpack

from lightning_freeze.arguments import check_unused
from lightning_freeze.errors import ConfigurationError

Interval = Literal["step", "epoch"]

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.LocalResponseNorm)


class AdamWSettings(TypedDict, total=False):
    """Arguments of ``torch.optim.AdamW``.

    Args:
        lr: Learning rate; 5e-5 unless given.
        betas: Decay rates of the running averages of the gradient and of its square.
        eps: Added to the denominator, for numerical stability.
        weight_decay: Decoupled weight decay; 0.01 unless given.
        amsgrad: Whether to use the AMSGrad variant.
        maximize: Whether to maximise the objective.
        foreach: Whether to use the multi-tensor implementation.
        capturable: Whether steps can be captured in a CUDA graph.
        differentiable: Whether autograd runs through the step.
        fused: Whether to use the fused implementation.
    """

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    amsgrad: bool
    maximize: bool
    foreach: bool | None
    capturable: bool
    differentiable: bool
    fused: bool | None


class DefaultAdamW(torch.optim.AdamW):
    """``torch.optim.AdamW`` with a learning rate for fine-tuning: 5e-5, and weight decay 0.01.

    Calling it returns a ``torch.optim.AdamW``. The defaults are not in the signature on purpose: the command line
    carries the arguments of a default over to another class that is named (``--model.optimizer Adam``), and would
    give Adam a rate and a weight decay that were not requested. Only arguments that were given are carried over.

    Args:
        params: Parameters or parameter groups.
        **settings: Arguments of ``torch.optim.AdamW``.
    """

    def __new__(cls, params: Any, **settings: Unpack[AdamWSettings]) -> torch.optim.AdamW:  # type: ignore[misc]
        """Return a ``torch.optim.AdamW``."""
        arguments: dict[str, Any] = {"lr": 5e-5, "weight_decay": 0.01, **settings}
        return torch.optim.AdamW(params, **arguments)


def split_decay(module: nn.Module) -> list[dict[str, Any]]:
    """Split all parameters into two groups, so that norms and biases have no weight decay.

    Every parameter is in exactly one group, frozen parameters included: they may be unfrozen later, and the groups of
    an optimizer must not change during a run. A norm is recognised by its type, or by a type name that ends in
    ``Norm`` (many models define their own RMS norm); any other parameter with fewer than two dimensions is a bias or
    a scale. So are the vectors of (IA)3 adapters, which start at 1 and have two dimensions.

    Args:
        module: The module whose parameters are split.

    Returns:
        Groups named ``"decay"`` and ``"no_decay"`` (with ``weight_decay`` 0); a group without parameters is left out.
    """
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    seen: set[int] = set()
    scales: set[int] = set()
    for submodule in module.modules():
        is_norm = isinstance(submodule, _NORMS) or type(submodule).__name__.endswith("Norm")
        is_norm = is_norm or id(submodule) in scales
        scales.add(id(getattr(submodule, "ia3_l", None)))  # parents come first
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

    Raises:
        ConfigurationError: The optimizer refuses its arguments, or the factory returns something else.
    """
    try:
        optimizer = factory(split_decay(module))
    except (TypeError, ValueError):
        # Some optimizers (LBFGS) take no groups at all; a wrong setting raises again here.
        optimizer = _build_plain(factory, module)
    if not isinstance(optimizer, Optimizer):
        raise ConfigurationError(
            f"optimizer returned a {type(optimizer).__name__}: expected a torch.optim.Optimizer, for example "
            "optimizer=lambda params: torch.optim.AdamW(params, lr=5e-5)."
        )
    return optimizer if "weight_decay" in optimizer.defaults else _build_plain(factory, module)


def _build_plain(factory: Callable[[Any], Optimizer], module: nn.Module) -> Optimizer:
    try:
        return factory(list(module.parameters()))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"The optimizer cannot be built: {error}") from error


def configure_optimizers(
    module: LightningModule,
    factory: Callable[[Any], Optimizer],
    scheduler_factory: Callable[[Optimizer], Any] | None,
    interval: Interval,
    warmup_ratio: float,
) -> OptimizerLRScheduler:
    """Build an optimizer over all parameters of a module, frozen ones included, and its schedule.

    Args:
        module: The module, which a Trainer fits.
        factory: As for :func:`build_optimizer`.
        scheduler_factory: Takes an optimizer, returns a scheduler; None for :func:`linear_warmup_decay`, or for no
            schedule where the optimizer computes its own rate or a callback has a schedule (``has_lr_schedule``).
        interval: Whether a scheduler that was given is stepped at each step or at each epoch.
        warmup_ratio: As for :func:`linear_warmup_decay`.

    Raises:
        ConfigurationError: The optimizer cannot be built, or the run has no known end and no scheduler was given.
    """
    optimizer = build_optimizer(factory, module)
    if scheduler_factory is None:
        reason = "it belongs to lr_scheduler, and none is given"
        check_unused(reason, [("lr_scheduler_interval", interval, "epoch")])
        if sets_own_rate(optimizer) or _has_schedule(module.trainer):
            return optimizer
        schedule = linear_warmup_decay(optimizer, module.trainer.estimated_stepping_batches, warmup_ratio)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
    scheduler = scheduler_factory(optimizer)
    settings: dict[str, Any] = {"scheduler": scheduler, "interval": interval}
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        settings["monitor"] = getattr(scheduler, "monitor", "val_loss")
    return {"optimizer": optimizer, "lr_scheduler": settings}  # type: ignore[return-value]


def _has_schedule(trainer: Trainer) -> bool:
    return any(getattr(callback, "has_lr_schedule", False) for callback in trainer.callbacks)  # type: ignore[attr-defined]


def sets_own_rate(optimizer: Optimizer) -> bool:
    """Whether an optimizer computes its learning rate by itself, so that no schedule can scale it.

    Adafactor of transformers does so by default (``lr=None``).

    Args:
        optimizer: Any optimizer.
    """
    return any(group.get("lr") is None for group in optimizer.param_groups)


def linear_warmup_decay(optimizer: Optimizer, total_steps: float, warmup_ratio: float) -> LambdaLR:
    """Return a schedule with linear warm-up to the full rate and linear decay to 0, stepped at each optimizer step.

    The first step already has a rate above 0, so that no step is lost; the rate reaches 0 after the last step.

    Args:
        optimizer: The optimizer whose rates are scheduled.
        total_steps: Number of optimizer steps of the whole run.
        warmup_ratio: Share of the steps that are warm-up, at least 0 and below 1.

    Raises:
        ConfigurationError: The run has no known end.
    """
    if total_steps == float("inf"):
        raise ConfigurationError(
            "The default schedule falls to 0 at the end of the run, but this run has no known end: expected "
            "trainer.max_epochs or trainer.max_steps to be set. For a run without an end, give an lr_scheduler."
        )
    total, warmup = int(total_steps), int(total_steps * warmup_ratio)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (total - step) / max(1, total - warmup))

    return LambdaLR(optimizer, factor)
