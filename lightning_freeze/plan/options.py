"""The arguments of ``plan_training``: checked, and those picked that decide about the course of a run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.accelerators import CUDAAccelerator

from lightning_freeze.errors import ConfigurationError, suggest
from lightning_freeze.namespaces import either

#: Arguments of the Trainer that decide about the course of a run. All others change nothing in a plan.
COURSE = (
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"),
    *("limit_train_batches", "limit_val_batches", "overfit_batches", "fast_dev_run"),
    *("val_check_interval", "check_val_every_n_epoch", "accumulate_grad_batches", "precision"),
)


def callbacks_of_run(callbacks: Sequence[Callback] | Callback | None) -> list[Callback]:
    """The callbacks of a run as a list.

    Args:
        callbacks: One callback, several or none.

    Raises:
        ConfigurationError: One of them is no callback.
    """
    given: list[Any] = [callbacks] if isinstance(callbacks, either(Callback)) else [*(callbacks or ())]  # type: ignore[misc]
    for callback in given:
        if not isinstance(callback, either(Callback)):
            raise ConfigurationError(
                f"plan_training got {callback!r} among the callbacks: expected instances of Callback."
            )
    return given


def trainer_options_of_run(
    given: Mapping[str, Any],
    max_epochs: int | None,
    batches_per_epoch: int | None,
    datamodule: LightningDataModule | None,
) -> dict[str, Any]:
    """The arguments of the Trainer that decide about the course of the run.

    Args:
        given: Arguments of the run's Trainer.
        max_epochs: Epochs of the run.
        batches_per_epoch: Training batches in an epoch.
        datamodule: Where the batches come from, if not from one batch.

    Raises:
        ConfigurationError: An argument does not exist, or a number is out of range.
    """
    known = [name for name in inspect.signature(Trainer).parameters if name != "callbacks"]
    for name in given:
        if name not in known:
            nearest = suggest(name, [*known, "batches_per_epoch", "datamodule", "memory"])
            raise ConfigurationError(f"plan_training(): neither it nor Trainer has an argument {name!r}.{nearest}")
    if batches_per_epoch is not None and (
        isinstance(batches_per_epoch, bool) or not isinstance(batches_per_epoch, int) or batches_per_epoch < 1
    ):
        raise ConfigurationError(f"batches_per_epoch is {batches_per_epoch!r}: expected a whole number, 1 or more.")
    options = {name: given[name] for name in COURSE if given.get(name) is not None}
    if max_epochs is not None:
        options["max_epochs"] = max_epochs
    elif not options.keys() & {"max_steps", "max_time"}:
        options["max_epochs"] = 1
    if datamodule is not None and batches_per_epoch is not None:
        options.setdefault("limit_train_batches", batches_per_epoch)
    if options.get("precision") in (16, "16", "16-mixed"):
        options["precision"] = "bf16-mixed"  # what the CPU has; it takes the same memory
    return options


def device_of_run(accelerator: object) -> str | None:
    """The type of the device that a run trains on; ``None`` if it is that of the module's parameters.

    Args:
        accelerator: The Trainer's argument, if it was given.
    """
    is_cuda = accelerator in ("gpu", "cuda") or isinstance(accelerator, CUDAAccelerator)
    return "cuda" if is_cuda else None


def shown(options: Mapping[str, Any]) -> str:
    """Arguments as text."""
    return ", ".join(f"{name}={value!r}" for name, value in options.items())
