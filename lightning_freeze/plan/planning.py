"""``plan_training``: starts a real fit and leaves it before the first step."""

from __future__ import annotations

import copy
import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_freeze.cache.store.sizes import parse_size
from lightning_freeze.callbacks.frozen_prefix_cache import FrozenPrefixCache
from lightning_freeze.callbacks.layer_callback import LayerCallback
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.plan.phase_costs import phases_of_run
from lightning_freeze.plan.training_plan import TrainingPlan
from lightning_freeze.session.moments import Moments


def plan_training(
    module: LightningModule,
    callbacks: Sequence[Callback] | Callback,
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
    The module is not changed.

    Args:
        module: The module, which may be on the meta device (``with torch.device("meta")``).
        callbacks: The callbacks of the run. Only those of this package are used.
        batch: One training batch, real or synthetic. With ``datamodule`` the first batch of its training data by
            default.
        max_epochs: Epochs of the run; 1 by default, unless ``max_steps`` is given.
        batches_per_epoch: Training batches in an epoch; with ``datamodule`` as many as it has, else 1 by default.
        datamodule: Where the batches come from.
        memory: How much memory there is, in bytes or as ``"24GiB"``. The plan then says which phases do not fit, and
            the least freezing that does.
        **trainer_options: Further arguments of the run's Trainer that decide about its course: ``max_steps``,
            ``accumulate_grad_batches``, ``precision``, ``val_check_interval``, ``check_val_every_n_epoch``,
            ``limit_train_batches``.

    Returns:
        The plan.

    Raises:
        ConfigurationError: If the set-up is wrong, as in ``Trainer.fit``, or there is no batch.

    Examples:
        >>> plan = plan_training(module, [GradualUnfreezing()], batch, max_epochs=6)  # doctest: +SKIP
        >>> print(plan)  # doctest: +SKIP
    """
    given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks)
    if batch is None and datamodule is None:
        raise ConfigurationError("plan_training needs a batch or a datamodule: expected one of them.")
    options = dict(trainer_options)
    if max_epochs is not None or "max_steps" not in options:
        options["max_epochs"] = 1 if max_epochs is None else max_epochs
    own = [_quiet(callback) for callback in given if isinstance(callback, LayerCallback)]
    uses_cache = any(isinstance(callback, FrozenPrefixCache) for callback in given)
    planner = _Planner(batch, uses_cache, None if memory is None else parse_size(memory))
    modes = {m: m.training for m in module.modules()}
    previous = _trainer_of(module)
    with _warnings_as_notes() as warned:
        trainer = Trainer(
            **options,
            callbacks=[*own, LayerCallback(verbose=False), planner],
            strategy=_NoDevice(),
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        try:
            if datamodule is None:
                batches = _Repeated(batch, batches_per_epoch or 1)
                trainer.fit(module, batches, val_dataloaders=_Repeated(batch, 1))
            else:
                trainer.fit(module, datamodule=datamodule)
        except _PlanComplete:
            pass
        finally:
            for each, mode in modes.items():
                each.training = mode
            module.trainer = previous
    assert planner.plan is not None
    return replace(planner.plan, notes=(*planner.plan.notes, *warned))


def _trainer_of(module: LightningModule) -> Trainer | None:
    try:
        return module.trainer
    except RuntimeError:  # it has had none yet
        return None


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


#: Warnings of Lightning that do not apply, because nothing is trained.
_NOISE = (
    ".*does not have many workers",
    ".*smaller than the logging interval",
    ".*have no `validation_step`",
    ".*have no `val_dataloader`",
    ".*in eval mode at the start of training",
    ".*LeafSpec.*is deprecated",
)


class _Planner(Callback):
    """Makes the plan when everything is ready for the first training batch."""

    def __init__(self, batch: Any, uses_cache: bool, memory: int | None) -> None:
        self.plan: TrainingPlan | None = None
        self._batch = batch
        self._uses_cache = uses_cache
        self._memory = memory

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        moments = Moments.of(pl_module)
        assert moments is not None
        batch = self._batch
        if batch is None:
            batch = next(iter(trainer.train_dataloader))  # type: ignore[arg-type]
        self.plan = phases_of_run(moments.session, batch, self._uses_cache, self._memory)
        raise _PlanComplete


class _NoDevice(SingleDeviceStrategy):
    """Leaves the module where it is, the meta device included."""

    def __init__(self) -> None:
        super().__init__(device=torch.device("cpu"))

    def model_to_device(self) -> None:
        pass

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
