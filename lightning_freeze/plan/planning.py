"""``plan_training``: starts a real fit and leaves it before the first step."""

from __future__ import annotations

import copy
import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_freeze.cache.store.sizes import parse_size
from lightning_freeze.callbacks.frozen_prefix_cache import FrozenPrefixCache
from lightning_freeze.callbacks.layer_callback import LayerCallback
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.namespaces import either
from lightning_freeze.plan.options import callbacks_of_run, device_of_run, shown, trainer_options_of_run
from lightning_freeze.plan.phase_costs import phases_of_run
from lightning_freeze.plan.training_plan import TrainingPlan
from lightning_freeze.plan.unchanged import unchanged
from lightning_freeze.session.moments import Moments


def plan_training(
    module: LightningModule,
    callbacks: Sequence[Callback] | Callback | None,
    batch: Any = None,
    *,
    max_epochs: int | None = None,
    batches_per_epoch: int | None = None,
    datamodule: LightningDataModule | None = None,
    memory: int | str | None = None,
    **trainer_options: Any,
) -> TrainingPlan:
    """Predict what a run will do and cost, without training.

    The set-up is that of ``Trainer.fit``: the callbacks find the layers, freeze them and are checked as usual, and
    the module configures its optimizers. Instead of the first step, one step of each phase runs on fake tensors, which
    have shapes but no elements. So the module may be on the meta device, and larger than the memory of this machine.
    The module, the callbacks and the random number generators are left as they were.

    Args:
        module: The module, which may be on the meta device (``with torch.device("meta")``).
        callbacks: The callbacks of the run. Only those of this package are used.
        batch: One training batch, real or synthetic, as a data loader returns it. With ``datamodule`` the first batch
            of its training data by default.
        max_epochs: Epochs of the run; 1 by default, unless ``max_steps`` is given.
        batches_per_epoch: Training batches in an epoch, 1 by default. With ``datamodule`` as many as it has by default,
            and this is the same as ``limit_train_batches``.
        datamodule: Where the batches come from.
        memory: How much memory there is, in bytes or as ``"24GiB"``. The plan then says which phases do not fit, and
            the least freezing that does.
        **trainer_options: Further arguments of the run's Trainer. Those that decide about its course count, such as
            ``max_steps``, ``accumulate_grad_batches``, ``precision``, ``val_check_interval``,
            ``check_val_every_n_epoch`` and ``limit_train_batches``. With ``accelerator="gpu"`` the time is that of a
            GPU, wherever the module is now. The others are ignored.

    Returns:
        The plan.

    Raises:
        ConfigurationError: If the set-up is wrong, as in ``Trainer.fit``, or there is no batch, or an argument does not
            exist.

    Examples:
        >>> plan = plan_training(module, [GradualUnfreezing()], batch, max_epochs=6)  # doctest: +SKIP
        >>> print(plan)  # doctest: +SKIP
    """
    given = callbacks_of_run(callbacks)
    if not isinstance(module, either(LightningModule)):
        raise ConfigurationError(f"plan_training got a {type(module).__name__}: expected a LightningModule.")
    if batch is None and datamodule is None:
        raise ConfigurationError("plan_training needs a batch or a datamodule: expected one of them.")
    options = trainer_options_of_run(trainer_options, max_epochs, batches_per_epoch, datamodule)
    own = [_quiet(callback) for callback in given if isinstance(callback, LayerCallback)]
    uses_cache = any(isinstance(callback, FrozenPrefixCache) for callback in given)
    planner = _Planner(uses_cache, parse_size(memory, "memory"), device_of_run(trainer_options.get("accelerator")))
    with unchanged(module, datamodule), _warnings_as_notes() as warned:
        trainer = Trainer(
            **options,
            callbacks=[planner, *own, LayerCallback(verbose=False)],
            strategy=_NoDevice(),
            accelerator="cpu",
            devices=1,
            logger=DummyLogger(),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        data: dict[str, Any] = {"datamodule": datamodule}
        if batch is not None:
            repeated = _Repeated(batch, 1 if batches_per_epoch is None else batches_per_epoch)
            data = {"train_dataloaders": repeated, "val_dataloaders": _Repeated(batch, 1)}
        with suppress(_PlanComplete):
            trainer.fit(module, **data)
    if planner.plan is None:
        raise ConfigurationError(
            f"There is nothing to plan: the run has no training batch with {shown(options)}. Expected at least one "
            f"batch in an epoch, and max_epochs or max_steps above 0."
        )
    return replace(planner.plan, notes=(*planner.plan.notes, *warned))


class _Repeated:
    """The same batch several times."""

    def __init__(self, batch: Any, times: int) -> None:
        self._batch, self._times = batch, times

    def __len__(self) -> int:
        return self._times

    def __iter__(self) -> Iterator[Any]:
        return itertools.repeat(self._batch, self._times)


class _PlanComplete(Exception):
    """Raised to end the fit when the plan is made."""


#: Warnings of Lightning and PyTorch that do not apply, because nothing is trained.
_NOISE = (
    ".*does not have many workers",
    ".*smaller than the logging interval",
    ".*have no `validation_step`",
    ".*have no `val_dataloader`",
    ".*in eval mode at the start of training",
    ".*LeafSpec.*is deprecated",
    ".*data pointer of FakeTensor",
)


class _Planner(Callback):
    """Makes the plan when the first training batch has arrived, before any other callback sees it."""

    def __init__(self, uses_cache: bool, memory: int | None, device: str | None) -> None:
        self.plan: TrainingPlan | None = None
        self._device = device
        self._uses_cache = uses_cache
        self._memory = memory

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        moments = Moments.of(pl_module)
        assert moments is not None
        pl_module.on_train_batch_start(batch, batch_idx)  # Lightning calls it next
        self.plan = phases_of_run(moments.session, batch, self._uses_cache, self._memory, self._device)
        raise _PlanComplete


class _NoDevice(SingleDeviceStrategy):
    """Leaves the module where it is, the meta device included, and moves batches there."""

    def __init__(self) -> None:
        super().__init__(device=torch.device("cpu"))

    def model_to_device(self) -> None:
        pass

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        assert self.lightning_module is not None
        parameters = [p for p in self.lightning_module.parameters() if p.device.type != "meta"]
        return super().batch_to_device(batch, parameters[0].device if parameters else device, dataloader_idx)

    def teardown(self) -> None:
        pass


def _quiet(callback: LayerCallback) -> LayerCallback:
    twin = copy.copy(callback)
    twin.verbose = False
    return twin


@contextmanager
def _warnings_as_notes() -> Iterator[list[str]]:
    """Collect warnings as notes for the plan, and print nothing."""
    notes: list[str] = []
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for message in _NOISE:
                warnings.filterwarnings("ignore", message=message)
            yield notes
        warned = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
        notes += dict.fromkeys(warned)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
