"""Unsupported combinations: each is refused, or causes a warning, with one message that says what to do."""

from __future__ import annotations

from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import BaseFinetuning, Callback, StochasticWeightAveraging
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import LBFGS

from lightning_freeze.compatibility.activation_checkpointing import models_with_input_grads
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers.analysis.quantised import find_barrier
from lightning_freeze.namespaces import either
from lightning_freeze.run_warnings.record import warn_in_run
from lightning_freeze.schedule.triggers import counts_steps
from lightning_freeze.session.session import Session

#: Not in every version of Lightning that this package works with.
_WEIGHT_AVERAGING: tuple[type[Callback], ...] = tuple(
    filter(None, [getattr(lightning_callbacks, "WeightAveraging", None)])
)


def callbacks_of(session: Session) -> list[Callback]:
    """All callbacks of the trainer."""
    callbacks: list[Callback] = session.trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def check_callbacks(session: Session) -> None:
    """Refuse callbacks that do not work together with those of the session.

    Args:
        session: The running fit, when all of its members have joined.

    Raises:
        ConfigurationError: Naming both callbacks.
    """
    freezing = [type(member).__name__ for member in session.members if member.freezes_layers]
    for callback in callbacks_of(session):
        if isinstance(callback, either(StochasticWeightAveraging)):
            _check_batch_norm(session, callback)
        if isinstance(callback, either(*_WEIGHT_AVERAGING)):
            _check_best_weights(session, callback)
        if isinstance(callback, either(BaseFinetuning)) and freezing:
            raise ConfigurationError(
                f"{freezing[0]} and {type(callback).__name__} both decide which parameters train; keep "
                f"one of them. GradualUnfreezing(start='head') does what BackboneFinetuning does, layer by layer."
            )


def _check_batch_norm(session: Session, averaging: Callback) -> None:
    frozen = list(session.holds.modules())
    for schedule in session.schedules:
        frozen += [module for _, modules in schedule.freezes for module in modules]
    in_eval_mode = {id(module) for module in frozen}
    names = [n for n, m in session.module.named_modules() if id(m) in in_eval_mode and isinstance(m, _BatchNorm)]
    if names:
        raise ConfigurationError(
            f"{type(averaging).__name__} resets the statistics of every BatchNorm layer at the end, and computes "
            f"them again in train mode; {len(names)} frozen ones (such as {names[0]}) are in eval mode and would "
            f"be left without any. Use Lightning's WeightAveraging instead, which averages the statistics, or set "
            f"frozen_eval=False."
        )


def _check_best_weights(session: Session, averaging: Callback) -> None:
    for schedule in session.schedules:
        if schedule.restores_best:
            raise ConfigurationError(
                f"{type(averaging).__name__} validates averaged weights, so {type(schedule.owner).__name__}("
                f"restore_best=True) would judge those and go back to others. Remove one of them; ModelCheckpoint "
                f"keeps the best averaged weights of the run."
            )


def check_optimizers(session: Session) -> None:
    """Refuse optimizers that move frozen parameters.

    Args:
        session: The running fit, whose optimizers exist.

    Raises:
        ConfigurationError: Naming the optimizer.
    """
    freezing = next(type(member).__name__ for member in session.members if member.freezes_layers)
    if any(isinstance(optimizer, LBFGS) for optimizer in session.trainer.optimizers):
        raise ConfigurationError(
            f"{freezing} cannot be used with LBFGS, which moves all of its parameters together, those of frozen layers "
            f"included; use a first-order optimizer such as AdamW."
        )


def check_gradients_pass(session: Session) -> None:
    """Refuse a quantised layer that blocks the gradient of parameters below it that train at some time.

    Args:
        session: The running fit, when all of its members have joined.

    Raises:
        ConfigurationError: Naming the module, and what to freeze.
    """
    barrier = find_barrier(session.stack, ever_trains(session))
    if barrier is not None:
        raise ConfigurationError(
            f"{barrier.module} is quantised, and no gradient passes through it: {barrier.parameter}, which is "
            f"to train, would get none, or not all of it. Keep everything up to layer {barrier.layer} frozen: "
            f"LayerFreezing({','.join(barrier.layers)!r}), beside a schedule or by itself."
        )


def ever_trains(session: Session) -> set[Parameter]:
    """The parameters that train now, or in any phase of the run.

    Args:
        session: The running fit, when all of its members have joined.
    """
    found = {parameter for parameter in session.module.parameters() if parameter.requires_grad}
    for schedule in session.schedules:
        for frozen, _ in schedule.freezes:
            rest = {p for layer in schedule.stack for p in layer.parameters()} - set(frozen)
            found |= {p for p in rest if session.holds.can_train(p, schedule.owner)}
    return found


def check_steps_are_counted(session: Session) -> None:
    """Refuse a schedule that waits for optimizer steps that Lightning does not count.

    Args:
        session: The running fit, after a training batch.

    Raises:
        ConfigurationError: If optimizers have stepped and ``Trainer.global_step`` has not moved.
    """
    if session.module.automatic_optimization or session.trainer.global_step:
        return
    for schedule in session.schedules:
        triggers = [phase.until for phase in schedule.plan if counts_steps(phase.until)]
        if schedule.steps_taken and triggers:
            raise ConfigurationError(
                f"{type(schedule.owner).__name__} waits for {triggers[0]}, but {type(session.module).__name__} steps "
                f"its optimizers without Lightning, so Trainer.global_step stands still. Step what "
                f"self.optimizers() returns, without use_pl_optimizer=False, or use EpochTrigger."
            )


def warn_of_input_grads(session: Session) -> None:
    """Warn if ``enable_input_require_grads()`` makes backward run through frozen layers.

    Args:
        session: The running fit, when all of its members have joined.
    """
    bottom = [p for layer in session.stack.layers[:2] for p in layer.parameters()]
    if not bottom or any(p.requires_grad for p in bottom):
        return
    for model in models_with_input_grads(session.module):
        warn_in_run(
            session.trainer,
            f"enable_input_require_grads() has been called on {type(model).__name__}, so backward runs through its "
            f"frozen layers too, and freezing them saves little time. If nothing needs the gradient of the "
            f"embeddings, call disable_input_require_grads() on it.",
        )
