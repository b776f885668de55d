"""The plan of a fit from the command line: ``plan`` shows it, and the report of ``fit`` compares the run with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator, XLAAccelerator

from lightning_freeze.plan import TrainingPlan, plan_training
from lightning_freeze.plan.options import COURSE


def plan_of_fit(
    trainer: Trainer,
    settings: Mapping[str, Any],
    module: LightningModule,
    datamodule: LightningDataModule,
    memory: int | None = None,
) -> TrainingPlan:
    """Plan what a trainer is about to fit.

    Args:
        trainer: The trainer.
        settings: Its arguments, as the config gives them.
        module: The module.
        datamodule: The data.
        memory: Available memory in bytes, to find out what fits.

    Raises:
        ConfigurationError: If the set-up is wrong, as in ``Trainer.fit``.
    """
    options = {name: settings[name] for name in COURSE if settings.get(name) is not None}
    if not (options.get("max_time") or options.get("fast_dev_run")):
        options["max_epochs"] = trainer.max_epochs  # 3 where nothing says how long
    accelerator = settings["accelerator"] if is_missing(settings.get("accelerator")) else trainer.accelerator
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return plan_training(module, callbacks, datamodule=datamodule, memory=memory, accelerator=accelerator, **options)


def is_missing(accelerator: object) -> bool:
    """Whether this machine has no such accelerator.

    Args:
        accelerator: The argument ``accelerator`` of a trainer.
    """
    cuda, mps, tpu = CUDAAccelerator.is_available, MPSAccelerator.is_available, XLAAccelerator.is_available
    named: dict[object, Callable[[], bool]] = {"gpu": lambda: cuda() or mps(), "cuda": cuda, "mps": mps, "tpu": tpu}
    return isinstance(accelerator, str) and accelerator in named and not named[accelerator]()
