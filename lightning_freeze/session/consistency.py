"""Whether what is frozen stays frozen, and something is left to train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_freeze.errors import ConfigurationError
from lightning_freeze.session.holds import Holds


def check_something_trains(module: LightningModule, holders: Sequence[object]) -> None:
    """Refuse a fit in which every parameter is frozen.

    Args:
        module: The module that is being fitted.
        holders: The callbacks that take part.

    Raises:
        ConfigurationError: If no parameter requires grad.
    """
    if any(parameter.requires_grad for parameter in module.parameters()):
        return
    names = [type(holder).__name__ for holder in holders]
    raise ConfigurationError(
        f"Nothing is left to train: {' and '.join(names)} {'freezes' if len(names) == 1 else 'freeze'} all parameters "
        f"of {type(module).__name__}. Leave at least one layer out, usually the head."
    )


def refuse_unfrozen(module: LightningModule, holds: Holds) -> None:
    """Refuse to go on where something else has set ``requires_grad=True`` on a parameter that is held frozen.

    Args:
        module: The module that is being fitted.
        holds: What is held frozen.

    Raises:
        ConfigurationError: Naming one of the parameters, and the callback that holds it.
    """
    unfrozen = holds.unfrozen()
    if unfrozen:
        name = next((n for n, p in module.named_parameters() if p is unfrozen[0]), "?")
        holder = type(holds.holders(unfrozen[0])[0]).__name__
        raise ConfigurationError(
            f"{holder} holds {len(unfrozen)} parameters frozen (such as {name}) that something else has "
            f"set to requires_grad=True: your module, or another callback. Only one of them can decide: remove "
            f"the other, or leave these layers out of {holder}."
        )


def call_before_training_step(trainer: Trainer, called: Callable[[], None]) -> Callable[[], object]:
    """Call a function right before each training step, after all callbacks and the module's own hooks.

    The ``on_train_batch_start`` of the module and of later callbacks runs after ours. The strategy's hook of this name
    is the last one before the training step.

    Args:
        trainer: The running trainer.
        called: What to call.

    Returns:
        Undoes it.
    """
    strategy = trainer.strategy
    hook = strategy.on_train_batch_start

    def on_train_batch_start(batch: Any, batch_idx: int) -> None:
        hook(batch, batch_idx)
        called()

    strategy.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]
    return lambda: vars(strategy).pop("on_train_batch_start", None)


def call_if_a_step_raises(trainer: Trainer, restore: Callable[[], None]) -> Callable[[], object]:
    """Call a function as soon as an optimizer step raises, before any other code handles the exception.

    Args:
        trainer: The running trainer.
        restore: What to call.

    Returns:
        Undoes it.
    """
    strategy = trainer.strategy
    step = strategy.optimizer_step

    def optimizer_step(*args: Any, **kwargs: Any) -> Any:
        try:
            return step(*args, **kwargs)
        except BaseException:
            restore()
            raise

    strategy.optimizer_step = optimizer_step  # type: ignore[method-assign]
    return lambda: vars(strategy).pop("optimizer_step", None)
